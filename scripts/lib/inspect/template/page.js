"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const INK = { lookback: "#111", truth: "#1f77b4", forecast: "#d62728", retrieved: "#2ca02c", path: "#9467bd" };
const COLOURS = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b"];
const HOUR = 3600e3;
const at = (id) => document.getElementById(id);
const time = (text) => Date.parse(text + "Z");
const day = (ms) => new Date(ms).toISOString().slice(0, 16).replace("T", " ");
const short = (value) => (value === null ? "?" : Number(value.toPrecision(4)).toString());
const escaped = (text) => text.replace(/[&<>"]/g, (c) => "&#" + c.charCodeAt(0) + ";");

// Positions of about `count` round numbers (or times, in ms) from `low` to `high`.
function ticks(low, high, count, isTime) {
  const wanted = (high - low) / count || 1;
  let step;
  if (isTime) {
    const steps = [1 / 60, 0.25, 1, 3, 6, 12, 24, 48, 96, 168, 336, 720, 2160, 8760].map((h) => h * HOUR);
    step = steps.find((s) => s >= wanted) || wanted;
  } else {
    const power = Math.pow(10, Math.floor(Math.log10(wanted)));
    step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= wanted * 0.999);
  }
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function range(values) {
  const known = values.filter((v) => v !== null && Number.isFinite(v));
  let low = Math.min(...known), high = Math.max(...known);
  if (!known.length) [low, high] = [0, 1];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  return [low, high];
}

// An SVG of lines {x, y, color, label, width, dash} and bands {x, low, high, color, opacity, label}.
function chart(place, { lines, bands = [], isTime = false, xLabel = "", yLabel = "", mark = null, height = 300, width = 900, name = "", from = null }) {
  const pad = { left: 58, right: 12, top: 8, bottom: 40 };
  const [x0, x1] = range([...lines, ...bands].flatMap((l) => l.x));
  let [y0, y1] = range([...lines.flatMap((l) => l.y), ...bands.flatMap((b) => [...b.low, ...b.high])]);
  if (from !== null) y0 = Math.min(from, y0);
  const room = (y1 - y0) * 0.04;
  if (from === null) y0 -= room;
  y1 += room;
  const px = (x) => pad.left + ((x - x0) / (x1 - x0)) * (width - pad.left - pad.right);
  const py = (y) => height - pad.bottom - ((y - y0) / (y1 - y0)) * (height - pad.top - pad.bottom);
  const point = (x, y) => px(x).toFixed(1) + "," + py(y).toFixed(1);
  const parts = [];
  for (const y of ticks(y0, y1, 5, false)) {
    parts.push(`<line x1="${pad.left}" x2="${width - pad.right}" y1="${py(y)}" y2="${py(y)}" stroke="#eee"/>`);
    parts.push(`<text x="${pad.left - 6}" y="${py(y) + 4}" text-anchor="end">${short(y)}</text>`);
  }
  const long = x1 - x0 > 36 * HOUR;
  for (const x of ticks(x0, x1, isTime ? width / 130 : width / 80, isTime)) {
    const text = isTime ? (long ? day(x).slice(0, 10) : day(x).slice(5)) : short(x);
    parts.push(`<line x1="${px(x)}" x2="${px(x)}" y1="${height - pad.bottom}" y2="${height - pad.bottom + 4}" stroke="#888"/>`);
    parts.push(`<text x="${px(x)}" y="${height - pad.bottom + 17}" text-anchor="middle">${text}</text>`);
  }
  parts.push(`<text x="${(width + pad.left) / 2}" y="${height - 4}" text-anchor="middle">${xLabel}</text>`);
  const middle = (height - pad.bottom) / 2;
  parts.push(`<text x="13" y="${middle}" text-anchor="middle" transform="rotate(-90 13 ${middle})">${yLabel}</text>`);
  if (mark !== null) parts.push(`<line x1="${px(mark)}" x2="${px(mark)}" y1="${pad.top}" y2="${height - pad.bottom}" stroke="#bbb"/>`);
  for (const b of bands) {
    const there = b.x.map((x, i) => point(x, b.high[i])), back = b.x.map((x, i) => point(x, b.low[i])).reverse();
    parts.push(`<path class="band" d="M${there.concat(back).join("L")}Z" fill="${b.color}" fill-opacity="${b.opacity}"/>`);
  }
  for (const l of lines) {
    let path = "", open = false;
    l.y.forEach((y, i) => {
      if (y === null || !Number.isFinite(y)) { open = false; return; }
      path += (open ? "L" : "M") + point(l.x[i], y);
      open = true;
    });
    const dash = l.dash ? ` stroke-dasharray="${l.dash}"` : "";
    const dots = l.y.length === 1 ? ` stroke-linecap="round"` : "";
    if (l.y.length === 1 && path) path += "l0.1,0";
    parts.push(`<path class="line" data-label="${escaped(l.label)}" d="${path}" fill="none" stroke="${l.color}" stroke-width="${l.y.length === 1 ? 6 : l.width || 1.5}"${dash}${dots}/>`);
  }
  parts.push(`<rect x="${pad.left}" y="${pad.top}" width="${width - pad.left - pad.right}" height="${height - pad.top - pad.bottom}" fill="none" stroke="#999"/>`);
  const legend = [...lines, ...bands].filter((l) => l.label && !l.quiet)
    .map((l) => `<span><i style="background:${l.color};opacity:${l.opacity ? Math.min(1, 2 * l.opacity) : 1}"></i>${escaped(l.label)}</span>`);
  place.innerHTML = `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(name)}">${parts.join("")}</svg><div class="legend">${legend.join("")}</div>`;
}

function figure(parent, caption) {
  const made = document.createElement("figure");
  made.innerHTML = `<figcaption>${escaped(caption)}</figcaption><div class="chart"></div>`;
  parent.append(made);
  return made.lastElementChild;
}

function drawForecast(shown, own) {
  const past = shown.shown.map(time), future = shown.forecast.map(time), joined = [past[past.length - 1], ...future];
  const last = own.lookback[own.lookback.length - 1];
  const bands = Object.entries(own.intervals).sort((a, b) => b[0] - a[0]).map(([level, half], i) => ({
    x: future, low: own.forecast.map((v, h) => v - half[h]), high: own.forecast.map((v, h) => v + half[h]),
    color: INK.forecast, opacity: 0.12 + 0.1 * i, label: `${short(100 * level)}% interval`,
  }));
  const lines = [{ x: past, y: own.lookback, color: INK.lookback, label: "lookback (its end)", width: 1.2 }];
  const found = own.retrieval ? own.retrieval.neighbours : [];
  if (at("retrieved").checked) {
    for (const [k, n] of found.entries()) {
      const ended = n.before[n.before.length - 1];
      lines.push({ x: joined, y: [last, ...n.after.map((v) => v - ended + last)], color: INK.retrieved, width: 0.7, quiet: k > 0, label: "after a neighbour, from here" });
    }
  }
  lines.push({ x: joined, y: [last, ...own.truth], color: INK.truth, label: "truth" });
  if (own.texts) lines.push({ x: joined, y: [last, ...own.texts.forecast_without], color: INK.forecast, label: "without texts", dash: "2 3" });
  lines.push({ x: joined, y: [last, ...own.forecast], color: INK.forecast, label: "forecast", width: 2 });
  const name = `${own.name}: forecast from ${shown.forecast[0]}`;
  chart(at("forecast"), { lines, bands, isTime: true, xLabel: "time", yLabel: `${escaped(own.name)} (original units)`, mark: joined[0], height: 340, width: 1100, name });
  const score = own.mse === null ? "" : `; MSE ${own.mse.toFixed(4)}, MAE ${own.mae.toFixed(4)} in standardised units`;
  at("said").textContent = `${own.name}, forecast from ${shown.forecast[0].replace("T", " ")} to ${shown.forecast[shown.forecast.length - 1].replace("T", " ")}${score}`;
}

function drawTexts(own) {
  const place = at("seen"), texts = own.texts;
  place.textContent = "";
  at("texts").textContent = texts
    ? `${texts.seen.length} seen; they move the forecast by ${texts.moved.toPrecision(3)} on average (dotted: without them)`
    : "This run reads no texts.";
  for (const t of texts ? texts.seen : []) {
    const made = document.createElement("li");
    const answers = Object.entries(t.answers).slice(0, 5).map(([word, p]) => `${word} ${(100 * p).toFixed(1)}%`).join(", ");
    made.textContent = `${t.time}, known for ${t.age} rows, weight ${t.weight.toFixed(2)}: ${t.text}${answers ? ` (answers: ${answers})` : ""}`;
    place.append(made);
  }
}

function drawNeighbours(own) {
  const place = at("neighbours"), retrieval = own.retrieval;
  place.textContent = "";
  if (!retrieval) { at("gate").textContent = "GRA-M is off in this run."; return; }
  at("gate").textContent = retrieval.matched
    ? `gate ${retrieval.gate.toFixed(3)} (1: the window alone decides, 0: history alone), confidence ${retrieval.confidence.toFixed(2)}; history moves the forecast by ${retrieval.moved.toPrecision(3)} on average, ${(100 * retrieval.share).toFixed(1)}% of its way; ${retrieval.found} windows retrieved, the nearest are shown; distance 1 is that of two random rows of the memory`
    : "no admissible window in the memory: the gate is 1 by rule";
  for (const [k, n] of retrieval.neighbours.entries()) {
    const until = n.until.replace("T", " ").slice(0, 16);
    const chartPlace = figure(place, `${n.variable}, until ${until}: distance ${n.distance.toFixed(3)}, weight ${n.weight.toFixed(2)}`);
    const before = n.before.map((_, i) => i + 1 - n.before.length), after = [0, ...n.after.map((_, i) => i + 1)];
    chart(chartPlace, { lines: [
      { x: before, y: n.before, color: INK.lookback, label: "before", quiet: true, width: 1.2 },
      { x: after, y: [n.before[n.before.length - 1], ...n.after], color: COLOURS[k % COLOURS.length], label: "after", quiet: true, width: 2 },
    ], xLabel: "rows before and after", mark: 0, height: 180, width: 260, name: `neighbour until ${until}` });
  }
}

function drawTrend(own) {
  const place = at("trend");
  place.textContent = own.trend ? "" : "TAPR is off in this run.";
  if (!own.trend) return;
  const bars = [...Object.entries(own.trend.direction), ...Object.entries(own.trend.magnitude)];
  const rows = bars.map(([name, share], i) => {
    const true_ = name === own.trend.true_direction || name === own.trend.true_magnitude;
    const y = 6 + i * 22 + (i >= 3 ? 8 : 0);
    return `<text x="92" y="${y + 13}" text-anchor="end">${name}</text><rect x="98" y="${y}" width="${(share * 260).toFixed(1)}" height="17" fill="${true_ ? INK.truth : "#aaa"}"/><text x="${104 + share * 260}" y="${y + 13}">${(100 * share).toFixed(0)}%</text>`;
  });
  const made = document.createElement("figure");
  made.innerHTML = `<figcaption>probabilities (blue: what came true); gate ${own.trend.gate.toFixed(2)}</figcaption><svg viewBox="0 0 420 176" role="img" aria-label="trend">${rows.join("")}</svg>`;
  place.append(made);
}

function drawCurves() {
  const place = at("charts");
  for (const panel of DATA.curves) {
    const lines = panel.lines.map((l, i) => ({ x: l.x, y: l.y, label: l.name, color: COLOURS[i % COLOURS.length] }));
    chart(figure(place, panel.title), { lines, xLabel: "optimizer step", yLabel: panel.unit, width: 540, height: 240, name: panel.title, from: 0 });
  }
  if (!DATA.curves.length) place.textContent = "This model takes no training steps.";
}

function draw() {
  const shown = DATA.windows[Number(at("window").value)];
  const own = shown.variables[Number(at("variable").value)];
  at("which").textContent = `${Number(at("window").value) + 1} of ${DATA.windows.length}: forecast from ${shown.forecast[0].replace("T", " ").slice(0, 16)}`;
  drawForecast(shown, own);
  drawTexts(own);
  drawNeighbours(own);
  drawTrend(own);
}

at("window").max = DATA.windows.length - 1;
DATA.targets.forEach((name, i) => at("variable").add(new Option(name, i)));
at("variable").value = DATA.targets.length - 1;
at("window").addEventListener("input", draw);
for (const id of ["variable", "retrieved"]) at(id).addEventListener("change", draw);
drawCurves();
draw();
