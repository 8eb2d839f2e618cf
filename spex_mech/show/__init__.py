"""What a person sees: the report page, its words, tables, charts and drawings; figures for papers."""
