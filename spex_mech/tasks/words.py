"""The words of the generators, chosen common and short so that most tokenizers have most of them as one token."""

_words = str.split

WOMEN = _words(
    "Mary Anna Sarah Emily Laura Julia Alice Emma Jane Helen Rachel Susan Linda Karen Maria Kate Grace Lucy Rose "
    "Ruth Diana Lisa Amy Claire Nancy Carol Sophie Jessica Rebecca Barbara Jennifer Elizabeth"
)
MEN = _words(
    "John Tom James Paul Peter Mark David Simon George Henry Jack Adam Daniel Michael Robert Kevin Brian Steve "
    "Eric Frank Martin Thomas William Richard Charles Joseph Edward Andrew Ryan Scott Jason Anthony"
)
PLACES = _words("garden station office school library market museum park hospital theater beach church bank cafe farm")
THINGS = _words("book letter ticket camera bottle gift map key ring phone hat card basket knife flower coin")
JOBS = _words("friend teacher writer doctor driver singer player student leader neighbor worker artist cook pilot")
PRAISE = _words("good great kind clever famous strong funny quiet brave nice fine wise rich busy")
EVENTS = _words(
    "war trial strike siege study project drought conflict campaign crisis journey mission march search program "
    "festival tour storm peace plague contract debate fight hunt survey reform work"
)
ARGUMENTS = _words(
    "size name path load file state count page index value option result model field group order rule test line "
    "code image user host port shape label score date color width height depth level range limit"
)
ABOUT = _words("first second main new old final local global total current input output basic empty full open simple")
SUBJECT = _words("number list text part case point time type data form side set table kind area unit body mode")
OBJECTS = _words("box car chair coat cup door hat lamp ball bag bowl book pen shirt table wall phone bike boat ring")
COLOUR_WORDS = _words("red blue green black white yellow brown orange pink purple gray gold silver")
