
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const one = (query, root = document) => root.querySelector(query);
  const all = (query, root = document) => [...root.querySelectorAll(query)];

  // Elements are made with text only: nothing of the data is ever read as HTML.
  const make = (tag, text = "", name = "") => {
    const element = document.createElement(tag);
    element.textContent = text;
    if (name) element.className = name;
    return element;
  };
  const figure = (value, digits = 3) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    const fixed = size >= 10 ** digits ? 0 : Math.max(0, digits - 1 - (size > 0 ? Math.floor(Math.log10(size)) : 0));
    const text = size > 0 && size < 1e-3 ? size.toExponential(1) : size.toFixed(fixed);
    return (value < 0 ? "−" : "") + text;
  };
  const signed = (value) => (value > 0 ? "+" : "") + figure(value);
  const label = (edge) => edge.c.map((i) => data.nodes[i].n).join(" × ");

  // Theme: the system's, until a reader chooses.
  const theme = one("#theme");
  const themes = ["auto", "light", "dark"];
  const stored = () => { try { return localStorage.getItem("spex-theme"); } catch { return null; } };
  const wear = (name) => {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    theme.textContent = `Theme: ${name}`;
    try { localStorage.setItem("spex-theme", name); } catch { /* a page in a frame has no storage */ }
  };
  let worn = Math.max(0, themes.indexOf(stored()));
  wear(themes[worn]);
  theme.hidden = false;
  theme.addEventListener("click", () => { worn = (worn + 1) % themes.length; wear(themes[worn]); });

  // The drawing: which sets are shown, and which component or set is chosen.
  const filters = one("#filters");
  const detail = one("#detail");
  const drawings = all("svg.circuit");
  let chosen = null; // {node: i} or {edge: i}

  const wanted = (edge) => {
    const form = new FormData(filters);
    const sign = form.get("sign");
    return form.getAll("order").includes(String(edge.c.length)) && form.getAll("kind").includes(edge.k)
      && (sign === "any" || (sign === "pos") === edge.v > 0);
  };
  const visible = () => {
    if (!filters) return [];
    const fit = data.edges.map((edge, i) => [edge, i]).filter(([edge]) => wanted(edge));
    const shown = fit.slice(0, Number(one("#strongest").value)).map(([, i]) => i);
    if (chosen && "node" in chosen) {
      shown.push(...fit.filter(([edge]) => edge.c.includes(chosen.node)).map(([, i]) => i));
    }
    if (chosen && "edge" in chosen) shown.push(chosen.edge);
    return shown;
  };
  const lit = () => {
    if (!chosen) return [new Set(), new Set()];
    const edges = "edge" in chosen ? [chosen.edge] : visible().filter((i) => data.edges[i].c.includes(chosen.node));
    const nodes = edges.flatMap((i) => data.edges[i].c).concat("node" in chosen ? [chosen.node] : []);
    return [new Set(edges), new Set(nodes)];
  };
  const update = () => {
    const shown = new Set(visible());
    const [edges, nodes] = lit();
    for (const drawing of drawings) {
      drawing.classList.toggle("chosen", chosen !== null);
      for (const edge of all("g.edge", drawing)) {
        const i = Number(edge.dataset.e);
        edge.classList.toggle("off", !shown.has(i));
        edge.removeAttribute("display");
        edge.classList.toggle("lit", edges.has(i));
      }
      for (const node of all("g.node", drawing)) {
        const i = Number(node.dataset.n);
        node.classList.toggle("lit", nodes.has(i));
        node.setAttribute("aria-pressed", String(Boolean(chosen) && chosen.node === i));
      }
    }
    if (!filters) return;
    const rest = data.total > data.edges.length ? ` The ${data.edges.length} strongest can be drawn.` : "";
    const weakest = Math.min(...[...shown].map((i) => Math.abs(data.edges[i].v)));
    one("#count").textContent = shown.size
      ? `${shown.size} of ${data.total} joint effects shown, down to ${figure(weakest)} ${data.unit}.${rest}`
      : "No joint effect passes these filters.";
  };
  const describe = (edge) => {
    const parts = [`${signed(edge.v)}${edge.e === null ? "" : ` ± ${figure(edge.e, 2)}`} ${data.unit}`, edge.k];
    if (edge.q !== null) parts.push(`q ${figure(edge.q, 2)}`);
    if (edge.x !== null) parts.push(`knockout ${signed(edge.x)}`);
    if (edge.s !== null) parts.push(`stability ${figure(edge.s, 2)}`);
    if (edge.m) parts.push(`measured again ${signed(edge.m[0])} ± ${figure(edge.m[1], 2)}${edge.m[2] ? "" : ", not confirmed"}`);
    return parts.join(" · ");
  };
  const button = (edge, i) => {
    const item = make("li");
    const press = make("button");
    press.type = "button";
    press.append(make("code", label(edge)), make("span", describe(edge)));
    press.addEventListener("click", () => choose({ edge: i }));
    item.append(press);
    return item;
  };
  const tellNode = (i) => {
    const node = data.nodes[i];
    detail.append(make("h3", node.n));
    const own = node.m === null ? "No effect of its own was found." : `Main effect ${signed(node.m)}${node.e === null ? "" : ` ± ${figure(node.e, 2)}`} ${data.unit}.`;
    detail.append(make("p", (node.r ? `${node.r}. ` : "") + own));
    const inside = data.edges.map((edge, e) => [edge, e]).filter(([edge]) => edge.c.includes(i));
    detail.append(make("p", inside.length ? `In ${inside.length} joint effect${inside.length === 1 ? "" : "s"}${inside.length > 12 ? "; the 12 strongest" : ""}:` : "In no joint effect."));
    const list = make("ul");
    list.append(...inside.slice(0, 12).map(([edge, e]) => button(edge, e)));
    detail.append(list);
  };
  const choose = (what) => {
    const same = what && chosen && what.node === chosen.node && what.edge === chosen.edge;
    chosen = same ? null : what;
    detail.replaceChildren();
    detail.hidden = chosen === null;
    if (chosen) {
      const close = make("button", "Close", "close");
      close.type = "button";
      close.addEventListener("click", () => choose(null));
      detail.append(close);
    }
    if (chosen && "node" in chosen) tellNode(chosen.node);
    if (chosen && "edge" in chosen) {
      const edge = data.edges[chosen.edge];
      detail.append(make("h3", label(edge)), make("p", describe(edge)));
    }
    update();
  };

  // Keys: one stop for Tab; arrows move between components by their places; Enter chooses, Escape lets go.
  const place = (node) => { const box = node.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; };
  const step = (from, key, nodes) => {
    const [x, y] = place(from);
    const across = key === "ArrowLeft" || key === "ArrowRight";
    const sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
    let best = null;
    for (const node of nodes) {
      const [u, v] = place(node);
      const ahead = sign * (across ? u - x : v - y);
      const aside = Math.abs(across ? v - y : u - x);
      if (node === from || ahead < 4 || (across && aside > 4)) continue;
      const cost = ahead + (across ? 0 : 0.35 * aside);
      if (!best || cost < best[0]) best = [cost, node];
    }
    return best ? best[1] : null;
  };
  for (const drawing of drawings) {
    const nodes = all("g.node", drawing);
    for (const node of nodes) {
      node.addEventListener("click", () => choose({ node: Number(node.dataset.n) }));
      node.addEventListener("keydown", (event) => {
        const next = event.key.startsWith("Arrow") ? step(node, event.key, nodes) : null;
        if (next) {
          node.setAttribute("tabindex", "-1");
          next.setAttribute("tabindex", "0");
          next.focus();
        } else if (event.key === "Enter" || event.key === " ") choose({ node: Number(node.dataset.n) });
        else if (event.key === "Escape") choose(null);
        else return;
        event.preventDefault();
      });
    }
    for (const edge of all("g.edge", drawing)) {
      edge.addEventListener("click", () => choose({ edge: Number(edge.dataset.e) }));
    }
  }
  if (filters) {
    filters.hidden = false;
    const slider = one("#strongest");
    if (matchMedia("(max-width: 720px)").matches) slider.value = slider.dataset.narrow;
    filters.addEventListener("input", update);
    filters.addEventListener("submit", (event) => event.preventDefault());
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") choose(null); });
  update();

  // Sorting: a button in every head of the table of interactions; what is unknown comes last.
  const sets = one("#sets");
  const worth = (cell) => {
    const held = one("data", cell);
    if (held) return held.hasAttribute("value") ? Number(held.value) : null;
    const words = cell.textContent.trim();
    if (words === "" || words === "–") return null;
    return Number.isNaN(Number(words)) ? words : Number(words);
  };
  const sort = (column, heads, rows) => {
    const down = heads[column].getAttribute("aria-sort") === "ascending";
    const keyed = rows.map((row) => [worth(row.cells[column]), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const less = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      return down ? -less : less;
    });
    heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? (down ? "descending" : "ascending") : "none"));
    sets.tBodies[0].append(...keyed.map(([, row]) => row));
  };
  if (sets) {
    const heads = [...sets.tHead.rows[0].cells];
    const rows = [...sets.tBodies[0].rows];
    heads.forEach((head, i) => {
      const press = make("button", head.textContent);
      press.type = "button";
      head.replaceChildren(press);
      head.setAttribute("aria-sort", "none");
      press.addEventListener("click", () => sort(i, heads, rows));
    });
  }

  // On paper everything that is folded is open.
  addEventListener("beforeprint", () => all("details").forEach((part) => { part.open = true; }));
})();
