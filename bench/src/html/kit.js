// Charts as SVG, drawn in the page. No state outside of what is drawn; every chart takes plain numbers.
const NS = "http://www.w3.org/2000/svg";
function node(name, attributes = {}, ...children) {
  const made = name.startsWith("svg:") ? document.createElementNS(NS, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value != null) made.setAttribute(key, value);
  for (const child of children.flat()) if (child != null) made.append(child);
  return made;
}
const svg = (name, attributes, ...children) => node("svg:" + name, attributes, ...children);

// Numbers for people.
function short(number) {
  const size = Math.abs(number);
  if (size >= 1e6) return trim(number / 1e6) + " M";
  if (size >= 1e3) return trim(number / 1e3) + " k";
  return trim(number);
}
function trim(number) {
  const size = Math.abs(number);
  return (size >= 99.95 ? number.toFixed(0) : size >= 9.995 ? number.toFixed(1) : number.toFixed(2)).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}
function micros(value) {
  if (value >= 999500) return trim(value / 1e6) + " s";
  if (value >= 999.5) return trim(value / 1e3) + " ms";
  return trim(value) + " µs";
}
function bytes(value) {
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) if (value >= size) return trim(value / size) + " " + unit;
  return trim(value) + " B";
}
const whole = (number) => Math.round(number).toLocaleString("en");

// Round values that cover a range; on a logarithmic scale 1, 2, 5 of each decade, or decades where those are too many.
function ticks(low, high, wanted, log) {
  if (log) {
    const all = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) for (const digit of [1, 2, 5]) all.push(digit * 10 ** power);
    const inside = all.filter((value) => value >= low * 0.999 && value <= high * 1.001);
    const decades = inside.filter((value) => /^1(e|0*$)/.test(String(+value.toPrecision(6))) || Number.isInteger(Math.log10(value)));
    if (inside.length < 3) return ticks(low, high, wanted, false).filter((value) => value > 0);
    return inside.length > wanted + 2 && decades.length >= 2 ? decades : inside;
  }
  const rough = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
  const all = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) all.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  return all;
}
function scale(low, high, from, to, log) {
  const place = log ? Math.log : (value) => value;
  const [a, b] = [place(low), place(high)];
  return (value) => from + ((place(value) - a) / (b - a || 1)) * (to - from);
}

// A card with a title, a sentence and room for a drawing that follows the width.
function card(parent, { title, text, wide, third, aside }, draw) {
  const room = node("div", { class: "plot" });
  parent.append(node("section", { class: "card" + (wide ? " wide" : third ? " third" : "") }, node("div", { class: "head" }, node("h2", {}, title), aside), text ? node("p", {}, text) : null, room));
  const again = () => { room.replaceChildren(); draw(room, room.clientWidth || 600); };
  again();
  let width = room.clientWidth;
  new ResizeObserver(() => { if (Math.abs(room.clientWidth - width) > 4) { width = room.clientWidth; again(); } }).observe(room);
  return again;
}
function legend(room, series) {
  if (series.length > 1) room.append(node("div", { class: "legend" }, series.map((one) => node("span", {}, node("i", { style: `background:${one.color}` }), one.name))));
}
function tip(room) {
  const box = node("div", { class: "tip", hidden: "" });
  room.append(box);
  return {
    show(x, y, title, lines) {
      box.replaceChildren(node("b", {}, title), ...lines.map((line) => node("div", {}, line.color ? node("i", { style: `background:${line.color}` }) : null, line.text)));
      box.hidden = false;
      box.style.left = Math.max(0, Math.min(x + 14, room.clientWidth - box.offsetWidth)) + "px";
      box.style.top = Math.max(0, y - box.offsetHeight - 10) + "px";
    },
    hide() { box.hidden = true; },
  };
}
function frame(room, width, height, { x, y, xTicks, yTicks, xText, yText, left = 58, xTitle }) {
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
  for (const value of yTicks) picture.append(svg("line", { class: "grid", x1: left, x2: width - 8, y1: y(value), y2: y(value) }), svg("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, yText(value)));
  for (const value of xTicks) picture.append(svg("text", { x: x(value), y: height - 10, "text-anchor": "middle" }, xText(value)));
  picture.append(svg("line", { class: "axis", x1: left, x2: width - 8, y1: height - 26, y2: height - 26 }));
  if (xTitle) picture.append(svg("text", { x: width - 8, y: height - 30, "text-anchor": "end" }, xTitle));
  room.append(picture);
  return picture;
}

// Lines over a common x. series: {name, color, values}; marks: {at, text}.
function lines(room, width, { xs, series, height = 230, log, yText = short, xText = trim, xTitle, area, marks = [], from, xPlace = (value) => value, xTicks, tipTitle }) {
  legend(room, series);
  const left = 58, values = series.flatMap((one) => one.values).filter((value) => Number.isFinite(value) && (!log || value > 0));
  if (!values.length) return room.append(node("p", {}, "Nothing was measured."));
  // A day has too many values for one call of Math.min.
  const [least, most] = values.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
  const low = log ? least / 1.15 : 0, high = most * (log ? 1.15 : 1.06) || 1;
  const places = xs.map(xPlace), x0 = places[0], x1 = places.at(-1);
  const xAt = scale(x0, x1 === x0 ? x0 + 1 : x1, left + 4, width - 14), x = (value) => xAt(xPlace(value)), y = scale(low, high, height - 26, 10, log);
  const picture = frame(room, width, height, { x, y, xTicks: xTicks ?? ticks(xs[0], xs.at(-1), Math.max(3, width / 90)), yTicks: ticks(low, high, 5, log), xText, yText, left, xTitle });
  if (from != null && from > xs[0]) picture.append(svg("rect", { x: x(xs[0]), y: 10, width: x(from) - x(xs[0]), height: height - 36, fill: "var(--grid)", opacity: 0.7 }), svg("text", { x: x(xs[0]) + 6, y: 24 }, "warm-up"));
  for (const one of series) {
    const points = xs.map((at, index) => [x(at), one.values[index]]).filter(([, value]) => Number.isFinite(value) && (!log || value > 0)).map(([at, value]) => `${at.toFixed(1)},${y(value).toFixed(1)}`);
    if (area) picture.append(svg("polygon", { points: `${x(xs[0])},${y(low)} ${points.join(" ")} ${x(xs.at(-1))},${y(low)}`, fill: one.color, opacity: 0.12 }));
    picture.append(svg("polyline", { points: points.join(" "), fill: "none", stroke: one.color, "stroke-width": 2, "stroke-linejoin": "round" }));
    if (points.length === 1) { const [cx, cy] = points[0].split(","); picture.append(svg("circle", { cx, cy, r: 3.5, fill: one.color })); }
  }
  for (const mark of marks) picture.append(svg("line", { class: "mark", x1: x(mark.at), x2: x(mark.at), y1: 10, y2: height - 26 }), svg("text", { x: x(mark.at) + 5, y: 20, style: "fill:var(--bad)" }, mark.text));
  const cross = svg("line", { class: "cross", y1: 10, y2: height - 26, visibility: "hidden" }), box = tip(room);
  picture.append(cross);
  picture.addEventListener("pointermove", (event) => {
    const at = event.clientX - picture.getBoundingClientRect().left;
    const nearest = xs.reduce((best, value, index) => (Math.abs(x(value) - at) < Math.abs(x(xs[best]) - at) ? index : best), 0);
    cross.setAttribute("x1", x(xs[nearest])); cross.setAttribute("x2", x(xs[nearest])); cross.setAttribute("visibility", "visible");
    box.show(x(xs[nearest]), picture.offsetTop ?? 60, (tipTitle ?? xText)(xs[nearest]), series.map((one) => ({ color: one.color, text: `${one.name}: ${one.values[nearest] == null ? "–" : yText(one.values[nearest])}` })));
  });
  picture.addEventListener("pointerleave", () => { box.hide(); cross.setAttribute("visibility", "hidden"); });
}

// Horizontal bars that begin where the one before them ended. bars: {name, color, start, length, text}.
function waterfall(room, width, { bars, xText, left = 104 }) {
  const step = 34, height = bars.length * step + 36, end = Math.max(...bars.map((bar) => bar.start + bar.length)) * 1.16 || 1;
  const x = scale(0, end, left, width - 10), picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
  for (const value of ticks(0, end, Math.max(3, width / 110))) picture.append(svg("line", { class: "grid", x1: x(value), x2: x(value), y1: 2, y2: height - 26 }), svg("text", { x: x(value), y: height - 8, "text-anchor": "middle" }, xText(value)));
  bars.forEach((bar, row) => {
    const top = row * step + 6, wide = Math.max(2, x(bar.start + bar.length) - x(bar.start));
    picture.append(svg("text", { class: "label", x: left - 12, y: top + 15, "text-anchor": "end" }, bar.name), svg("rect", { x: x(bar.start), y: top, width: wide, height: 20, rx: 4, fill: bar.color }), svg("text", { class: "label", x: x(bar.start) + wide + 8, y: top + 15 }, bar.text));
  });
  room.append(picture);
}

function grid(parent, head, rows, best = () => false) {
  const isNumber = (cell) => typeof cell === "object" && cell?.num != null;
  const cell = (tag) => (value) => (isNumber(value) ? node(tag, { class: "num" }, value.num) : node(tag, {}, value));
  parent.append(node("div", { class: "scroll" }, node("table", {}, head ? node("thead", {}, node("tr", {}, head.map(cell("th")))) : null, node("tbody", {}, rows.map((row, at) => node("tr", best(at) ? { class: "best" } : {}, row.map(cell("td"))))))));
}
