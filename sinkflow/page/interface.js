// What one sees and touches. State is in `state` and `flow`; everything drawn follows from them.

const SIDE = 2; // the plane is [-SIDE, SIDE]^2 [length]
const LARGEST_MASS = 9;
const SOLVE_MS = 15; // a frame's time for iterations; what is left is done in the next frames
const FLOW_MS = 30; // the same while nothing is dragged and the flow runs
const STEP_MS = 60; // between two steps of a flow that plays
const CALM_STEP_MS = 500; // the same where less motion is asked for
const LAST_STEP = 300;
const THICKEST = 6; // pixels of a line with as much mass as one could carry, among few points
const MANY = 25; // points of a cloud, from which on lines and points are drawn smaller
const AT_REST = 1e-3; // speed [length per unit of flow time] at which a flow has ended
const KINDS = ["source", "target"];
const FLOWS = ["debiased", "biased"];
const SVG = "http://www.w3.org/2000/svg";
const prefersCalm = matchMedia("(prefers-reduced-motion: reduce)");

const at = (id) => document.getElementById(id);
const state = {
  source: [], target: [], // points {at: [x, y], mass}
  selected: null, // {kind, index}
  epsilon: 0.3, view: "entropic", count: 0, seed: 1,
  exact: null, solves: null,
};
const flow = { step: 0, pending: 0, moved: 0, runs: null };
let dirty = true, scheduled = false;

const positions = (kind) => state[kind].map((point) => point.at);
const masses = (kind) => state[kind].map((point) => point.mass);
const clamp = (value) => Math.round(100 * Math.min(Math.max(value, -SIDE), SIDE)) / 100 || 0;
const text = (id, value) => { if (at(id).textContent !== value) at(id).textContent = value; };
const shown = (number) => number.toFixed(5);
const coordinate = (value) => value.toFixed(2).replace("-", "−");
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

// ---- Points -----------------------------------------------------------------------------------

/** Pseudo-random numbers in (0, 1), the same for the same seed (mulberry32). */
function random(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function normal(next) {
  return Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
}

const SAMPLERS = {
  ring: {
    source: (next) => [-1.1 + 0.3 * normal(next), -0.9 + 0.3 * normal(next)],
    target: (next, share) => {
      const angle = 2 * Math.PI * share;
      return [0.5 + Math.cos(angle) + 0.05 * normal(next), 0.5 + Math.sin(angle) + 0.05 * normal(next)];
    },
  },
  moons: {
    source: (next, share) => [share < 0.5 ? -1.4 : 1.4, 1.2].map((c) => c + 0.2 * normal(next)),
    target: (next, share) => {
      const upper = share < 0.5, angle = 2 * Math.PI * (upper ? share : share - 0.5);
      const across = upper ? Math.cos(angle) - 0.5 : 0.5 - Math.cos(angle);
      const along = upper ? Math.sin(angle) : 0.4 - Math.sin(angle);
      return [across + 0.05 * normal(next), -0.9 + along + 0.05 * normal(next)];
    },
  },
  random: {
    source: (next) => [3.6 * next() - 1.8, 3.6 * next() - 1.8],
    target: (next) => [3.6 * next() - 1.8, 3.6 * next() - 1.8],
  },
};

function resample() {
  const next = random(state.seed), samplers = SAMPLERS[at("arrangement").value];
  for (const [kind, id] of [["source", "n"], ["target", "m"]]) {
    const count = Math.round(Math.min(Math.max(Number(at(id).value) || 1, 1), 60));
    at(id).value = count;
    state[kind] = Array.from({ length: count }, (_, index) => ({
      at: samplers[kind](next, index / count).map(clamp), mass: 1,
    }));
  }
  select(null);
  changed();
}

function select(selected) {
  state.selected = selected;
  schedule();
}

function move(kind, index, to) {
  state[kind][index].at = to.map(clamp);
  changed();
}

function add(kind, to) {
  if (state[kind].length >= 60) return say(`60 ${kind}s are as many as fit.`);
  const near = state[kind].length ? state[kind][state[kind].length - 1].at : [0, 0];
  const place = to || [near[0] > 1.6 ? near[0] - 0.3 : near[0] + 0.3, near[1]];
  state[kind].push({ at: place.map(clamp), mass: 1 });
  select({ kind, index: state[kind].length - 1 });
  changed();
  syncPoints();
  marks[kind][state.selected.index].focus();
}

function remove() {
  if (!state.selected) return;
  const { kind, index } = state.selected;
  if (state[kind].length === 1) return say(`The last ${kind} stays: a plan needs one.`);
  const hadFocus = document.activeElement && document.activeElement.closest(".point");
  state[kind].splice(index, 1);
  select(hadFocus ? { kind, index: Math.min(index, state[kind].length - 1) } : null);
  changed();
  syncPoints();
  if (hadFocus) marks[kind][state.selected.index].focus();
}

function weigh(by) {
  if (!state.selected) return;
  const point = state[state.selected.kind][state.selected.index];
  point.mass = Math.min(Math.max(point.mass + by, 1), LARGEST_MASS);
  changed();
}

// ---- From the points to the numbers -----------------------------------------------------------

function changed() {
  dirty = true;
  schedule();
}

function schedule() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(frame);
}

function frame(now) {
  scheduled = false;
  if (dirty) restart();
  state.solves = solveAll(state.solves, within(SOLVE_MS));
  if (ready(state.solves)) runFlow(now);
  render();
  if (!flowReady() || flow.pending) schedule();
}

function within(milliseconds) {
  const end = performance.now() + milliseconds;
  return () => performance.now() > end;
}

const ready = (solves) => Object.values(solves).every(finished);

/** New problems after a change, from the potentials of the old ones while sizes agree. */
function restart() {
  dirty = false;
  const x = positions("source"), y = positions("target");
  const a = distribution(masses("source")), b = distribution(masses("target"));
  const old = state.solves;
  const near = old && {
    xy: old.xy.g.length === y.length ? old.xy : null,
    xx: old.xx.f.length === x.length ? old.xx : null,
    yy: old.yy.f.length === y.length ? old.yy : null,
  };
  state.solves = startAll(x, y, state.epsilon, a, b, near || {});
  const cost = state.solves.xy.problem.cost;
  state.exact = exactPlan(cost, masses("source"), masses("target"));
  state.limited = state.count ? scaled(x, y, state.epsilon, a, b, state.count) : null;
  at("n").value = x.length;
  at("m").value = y.length;
  resetFlow();
}

function resetFlow() {
  Object.assign(flow, { step: 0, pending: 0, runs: null });
}

/** Takes a step, if it is time and both flows know their velocities, and goes on with the solves. */
function runFlow(now) {
  if (!flow.runs) {
    const x = positions("source");
    flow.runs = Object.fromEntries(FLOWS.map((name) => [name, { x, trail: [x], solves: state.solves }]));
  }
  const wait = flow.pending === 1 ? 0 : prefersCalm.matches ? CALM_STEP_MS : STEP_MS;
  if (flow.pending && flowReady() && now - flow.moved >= wait) {
    flow.moved = now;
    flow.pending--;
    flow.step++;
    FLOWS.forEach(takeStep);
  }
  const deadline = within(FLOW_MS);
  for (const name of FLOWS) flow.runs[name].solves = solveAll(flow.runs[name].solves, deadline);
  if (flow.pending && flowReady() && (flow.step >= LAST_STEP || atRest())) flow.pending = 0;
}

const flowReady = () => flow.runs && FLOWS.every((name) => ready(flow.runs[name].solves));
const atRest = () => FLOWS.every((name) => flowVelocity(name).every((v) => Math.hypot(...v) < AT_REST));

function flowVelocity(name) {
  return velocity(flow.runs[name].solves, name === "debiased");
}

function takeStep(name) {
  const run = flow.runs[name], { xy, xx, yy } = run.solves, { y, epsilon, a, b } = xy.problem;
  const x = eulerStep(run.x, flowVelocity(name), Number(at("step-size").value));
  const solves = { xy: startSolve(x, y, epsilon, a, b, xy.g), xx: startSelf(x, epsilon, a, xx.f), yy };
  flow.runs[name] = { x, trail: [...run.trail, x], solves };
}

// ---- What is shown ----------------------------------------------------------------------------

function render() {
  const { exact, view } = state, solve = state.limited || state.solves.xy;
  const refusal = whyNoAssignment();
  const entropic = view === "entropic";
  const seen = entropic ? plan(solve) : view === "assignment" && refusal ? null : exact.plan;
  document.body.classList.toggle("without-entropic", !entropic);
  syncPoints();
  drawPlane(seen);
  drawHeat(seen, solve.problem);
  showNumbers(solve, refusal);
  showCertificate(seen, solve);
  text("seen", refusal && view === "assignment" ? refusal : inWords(solve));
  showFlow();
  settle();
}

function whyNoAssignment() {
  const [n, m] = KINDS.map((kind) => state[kind].length);
  if (n !== m) {
    return `There is no assignment of ${plural(n, "source")} to ${plural(m, "target")}: it needs as many of ` +
      "one as of the other. The exact plan splits mass instead.";
  }
  const all = [...masses("source"), ...masses("target")];
  if (all.some((mass) => mass !== all[0])) {
    return "There is no assignment of points of different weight: it matches whole points. " +
      "The exact plan splits mass instead.";
  }
  return null;
}

function inWords(solve) {
  const { exact, view } = state, n = state.source.length, m = state.target.length;
  if (view === "assignment") {
    return `Each of the ${n} sources is matched with one target. Any other matching costs at least as ` +
      "much. Swap two points, and lines change in jumps.";
  }
  if (view === "exact") {
    const lines = exact.plan.reduce((count, row) => count + row.filter((mass) => mass > 0).length, 0);
    return `No plan costs less than ${shown(exact.cost)}. ${plural(lines, "pair")} of the ${n * m} exchange ` +
      `mass; n + m − 1 = ${n + m - 1} are always enough.`;
  }
  const above = inner(solve.problem.cost, plan(solve)) - exact.cost;
  const comparison = above >= 0 ? `${shown(above)} above` : `${shown(-above)} below`;
  return `Each source shares its mass among about ${neighbours(solve).toFixed(1)} targets. That costs ` +
    `${comparison} the exact plan. ` +
    (converged(solve)
      ? "A larger ε blurs more; a smaller one comes nearer to the exact plan and takes more iterations."
      : "A plan with wrong sums is no plan between these points: its cost may even be below the least.");
}

function showNumbers(solve, refusal) {
  const { exact, solves } = state, cost = solves.xy.problem.cost;
  text("exact-cost", shown(exact.cost));
  text("assignment-cost", refusal ? "none" : shown(assignmentCost(cost)));
  text("plan-cost", shown(inner(cost, plan(solve))));
  text("value", shown(value(solve)));
  text("divergence", state.limited ? "not converged" : shown(divergence(solves)));
  text("neighbours", neighbours(solve).toFixed(2));
}

function assignmentCost(cost) {
  if (state.matchedFor !== cost) {
    state.matchedFor = cost;
    state.matched = sum(assignment(cost).map((j, i) => cost[i][j]));
  }
  return state.matched;
}

function showCertificate(seen, solve) {
  const element = at("certificate");
  const data = { error: "", iterations: "", converged: "" };
  if (state.view !== "entropic") {
    text("certificate", seen ? "Row sums are p and column sums are q." : "");
    element.className = "certificate good";
  } else {
    const others = state.limited ? [] : [state.solves.xx, state.solves.yy];
    const good = converged(solve) && others.every(converged);
    const waiting = !state.limited && !ready(state.solves);
    const error = solve.error.toExponential(1).replace("-", "−");
    Object.assign(data, { error: solve.error, iterations: solve.iterations, converged: good });
    text("certificate", `Marginal error ${error} after ${plural(solve.iterations, "iteration")}: ` +
      (good ? "converged." : waiting ? "iterating …" : "not converged, do not believe the numbers."));
    element.className = `certificate ${good ? "good" : "bad"}`;
  }
  Object.assign(element.dataset, data);
}

function showFlow() {
  text("play", flow.pending > 1 ? "Pause" : "Play");
  if (!flowReady()) return; // what is shown stays until the next numbers are right
  const { a, b, y } = state.solves.xy.problem, spreads = {};
  const time = flow.step * Number(at("step-size").value);
  text("time", `step ${flow.step}, time ${time.toFixed(2)}`);
  for (const name of FLOWS) {
    const { x, solves } = flow.runs[name];
    spreads[name] = spread(x, a);
    text(`${name}-divergence`, shown(divergence(solves)));
    text(`${name}-value`, shown(value(solves.xy)));
    text(`${name}-spread`, shown(spreads[name]));
    const error = Math.max(solves.xy.error, solves.xx.error, solves.yy.error);
    const good = Object.values(solves).every(converged);
    text(`${name}-error`, error.toExponential(1).replace("-", "−") + (good ? "" : ", not converged"));
    drawFlow(name);
  }
  const wanted = spread(y, b), percent = (name) => `${Math.round((100 * spreads[name]) / wanted)}%`;
  text("target-spread", `targets: ${shown(wanted)}`);
  text("flow-seen", flow.step === 0
    ? "Both start from the points above. Press Play, then try a larger and a smaller ε."
    : `With the self term the moving points have ${percent("debiased")} of the targets’ spread, without it ` +
      `${percent("biased")}. ` +
      "In the end the biased flow is shrunk towards the targets’ mean, the more the larger ε is.");
}

let settling = 0;

/** Text for readers of the screen and the Python lines, once nothing changes any more. */
function settle() {
  clearTimeout(settling);
  settling = setTimeout(() => {
    text("status", `${at("seen").textContent} ${at("certificate").textContent}`);
    at("python").value = pythonLines();
    document.body.dataset.settled = String(!scheduled);
  }, 150);
  document.body.dataset.settled = "false";
}

function say(message) {
  text("selected", message);
}

function pythonLines() {
  const array = (values) => `np.array([${values.join(", ")}])`;
  const cloud = (kind) => array(positions(kind).map((p) => `[${p[0]}, ${p[1]}]`));
  const weights = (kind) => `${array(masses(kind))} / ${sum(masses(kind))}`;
  return [
    "import numpy as np",
    "import sinkflow",
    "",
    `x = ${cloud("source")}`,
    `y = ${cloud("target")}`,
    `a = ${weights("source")}`,
    `b = ${weights("target")}`,
    `epsilon = ${state.epsilon}`,
    "limits = sinkflow.Limits(threshold=1e-5, max_iterations=20_000)",
    "",
    "plan, exact_cost = sinkflow.exact.transport_plan(x, y, a, b)",
    "out = sinkflow.sinkhorn(x, y, epsilon, a=a, b=b, limits=limits)",
    "divergence, converged = sinkflow.sinkhorn_divergence(x, y, epsilon, a=a, b=b, limits=limits)",
    "print(exact_cost, out.value, divergence, out.neighbours, out.marginal_error, converged)",
  ].join("\n");
}

// ---- Drawing ----------------------------------------------------------------------------------

const marks = { source: [], target: [] };

function colours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["source", "target", "line", "ink", "rule", "faint"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** A cleared canvas in units of CSS pixels, and its size. */
function cleared(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas, ratio = devicePixelRatio || 1;
  const wanted = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wanted[0] || canvas.height !== wanted[1]) [canvas.width, canvas.height] = wanted;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

function toScreen(p, size) {
  return [((p[0] + SIDE) / (2 * SIDE)) * size, ((SIDE - p[1]) / (2 * SIDE)) * size];
}

function radius(kind, mass, size) {
  const base = (size / 75) * (state[kind].length > MANY ? 0.75 : 1);
  return base * Math.sqrt(mass);
}

function drawPlane(seen) {
  const { context, width } = cleared(at("plane").querySelector("canvas"));
  if (!seen) return;
  const xs = positions("source").map((p) => toScreen(p, width));
  const ys = positions("target").map((p) => toScreen(p, width));
  const { a, b } = state.solves.xy.problem, largest = Math.min(Math.max(...a), Math.max(...b));
  const thickest = Math.max(a.length, b.length) > MANY ? 0.5 * THICKEST : THICKEST;
  context.strokeStyle = colours().line;
  context.lineCap = "round";
  seen.forEach((row, i) => row.forEach((mass, j) => {
    const thickness = (thickest * mass) / largest;
    if (thickness < 0.02) return;
    // A line thinner than a pixel is drawn fainter instead: screens have no thinner ones.
    context.globalAlpha = 0.85 * Math.min(thickness, 1);
    context.lineWidth = Math.max(thickness, 1);
    context.beginPath();
    context.moveTo(...xs[i]);
    context.lineTo(...ys[j]);
    context.stroke();
  }));
  context.globalAlpha = 1;
}

/** One focusable mark for each point: made where one is missing, then moved to its place. */
function syncPoints() {
  const svg = at("plane").querySelector("svg"), size = svg.clientWidth;
  for (const kind of KINDS) {
    while (marks[kind].length > state[kind].length) marks[kind].pop().remove();
    while (marks[kind].length < state[kind].length) {
      const mark = makeMark(kind, marks[kind].length);
      const before = kind === "source" ? marks.target[0] : null;
      svg.insertBefore(mark, before || null);
      marks[kind].push(mark);
    }
    state[kind].forEach((point, index) => placeMark(kind, index, point, size));
  }
  showSelected();
}

function makeMark(kind, index) {
  const group = document.createElementNS(SVG, "g");
  group.setAttribute("class", `point ${kind}`);
  group.setAttribute("tabindex", "0");
  group.setAttribute("role", "button");
  for (const [name, cls] of [["circle", "hit"], ["circle", "ring"], [kind === "source" ? "circle" : "rect", "mark"]]) {
    const shape = document.createElementNS(SVG, name);
    shape.setAttribute("class", cls);
    group.append(shape);
  }
  group.addEventListener("pointerdown", (event) => startDrag(event, kind, index));
  group.addEventListener("keydown", (event) => key(event, kind, index));
  group.addEventListener("focus", () => select({ kind, index }));
  return group;
}

function placeMark(kind, index, point, size) {
  const group = marks[kind][index], r = radius(kind, point.mass, size);
  const [left, top] = toScreen(point.at, size);
  const [hit, ring, mark] = group.children;
  const set = (shape, values) => Object.entries(values).forEach(([k, v]) => shape.setAttribute(k, v));
  group.setAttribute("transform", `translate(${left.toFixed(2)} ${top.toFixed(2)})`);
  set(hit, { r: Math.max(r, 16) });
  set(ring, { r: r + 4 });
  if (kind === "source") set(mark, { r });
  else set(mark, { x: -0.89 * r, y: -0.89 * r, width: 1.78 * r, height: 1.78 * r });
  const selected = state.selected && state.selected.kind === kind && state.selected.index === index;
  group.classList.toggle("selected", Boolean(selected));
  group.setAttribute("aria-label", described(kind, index));
}

function described(kind, index) {
  const { at: [x, y], mass } = state[kind][index];
  return `${kind} ${index + 1} at (${coordinate(x)}, ${coordinate(y)}), weight ${mass}`;
}

function showSelected() {
  const { selected } = state;
  for (const id of ["delete", "lighter", "heavier"]) at(id).disabled = !selected;
  const hint = "Touch a point to select it. Its weight is its share of the mass.";
  text("selected", selected ? `Selected: ${described(selected.kind, selected.index)}.` : hint);
}

function drawHeat(seen, { a, b }) {
  const canvas = at("heat"), { context, width, height } = cleared(canvas), colour = colours();
  canvas.setAttribute("aria-label", "Plan as a matrix: sources down, targets across, with its sums");
  if (!seen) return;
  const label = 18, bars = 0.2 * width, side = width - bars - label - 4, left = label, top = label;
  const across = side / b.length, down = side / a.length;
  const largest = Math.max(...seen.map((row) => Math.max(...row)));
  context.fillStyle = colour.faint;
  context.font = "12px system-ui, sans-serif";
  context.fillText(`targets 1 … ${b.length}`, left, 12);
  context.save();
  context.translate(12, top + side);
  context.rotate(-Math.PI / 2);
  context.fillText(`sources 1 … ${a.length}`, 0, 0);
  context.restore();
  context.fillText("sums, p", left + side + 6, 12);
  context.fillText("sums, q", left + side + 6, Math.min(top + side + 20, height - 4));
  context.fillStyle = colour.ink;
  seen.forEach((row, i) => row.forEach((mass, j) => {
    context.globalAlpha = mass / largest;
    context.fillRect(left + j * across, top + i * down, across - 0.5, down - 0.5);
  }));
  context.globalAlpha = 1;
  context.strokeStyle = colour.rule;
  context.strokeRect(left - 0.5, top - 0.5, side + 1, side + 1);
  const rows = rowSums(seen), columns = columnSums(seen);
  const scale = (bars - 8) / Math.max(...rows, ...columns, ...a, ...b);
  rows.forEach((total, i) => {
    bar(context, colour.source, colour.ink, [left + side + 4, top + i * down], down, scale * total, scale * a[i], false);
  });
  columns.forEach((total, j) => {
    bar(context, colour.target, colour.ink, [left + j * across, top + side + 4], across, scale * total, scale * b[j], true);
  });
}

/** A bar as long as a sum, and across it the line that it has to reach. */
function bar(context, fill, ink, [left, top], width, length, wanted, downwards) {
  context.fillStyle = fill;
  const gap = Math.min(1, 0.2 * width);
  if (downwards) context.fillRect(left + gap, top, width - 2 * gap, length);
  else context.fillRect(left, top + gap, length, width - 2 * gap);
  context.fillStyle = ink;
  if (downwards) context.fillRect(left, top + wanted - 1, width, 2);
  else context.fillRect(left + wanted - 1, top, 2, width);
}

function drawFlow(name) {
  const canvas = at(name), { context, width } = cleared(canvas), colour = colours();
  const { x, trail } = flow.runs[name], v = flowVelocity(name);
  context.globalAlpha = 0.5;
  context.strokeStyle = colour.source;
  context.lineWidth = 1;
  x.forEach((_, i) => {
    context.beginPath();
    trail.forEach((points, k) => context[k ? "lineTo" : "moveTo"](...toScreen(points[i], width)));
    context.stroke();
  });
  context.globalAlpha = 1;
  context.fillStyle = colour.target;
  for (const point of state.target) {
    const r = radius("target", point.mass, width), [left, top] = toScreen(point.at, width);
    context.fillRect(left - 0.89 * r, top - 0.89 * r, 1.78 * r, 1.78 * r);
  }
  x.forEach((p, i) => {
    arrow(context, colour.ink, toScreen(p, width), toScreen([p[0] + 0.25 * v[i][0], p[1] + 0.25 * v[i][1]], width));
    context.fillStyle = colour.source;
    context.beginPath();
    context.arc(...toScreen(p, width), radius("source", state.source[i].mass, width), 0, 2 * Math.PI);
    context.fill();
  });
  canvas.setAttribute("aria-label", `${name} flow after ${plural(flow.step, "step")}`);
}

function arrow(context, ink, [left, top], [toLeft, toTop]) {
  const length = Math.hypot(toLeft - left, toTop - top);
  if (length < 3) return;
  const head = Math.min(6, 0.4 * length), angle = Math.atan2(toTop - top, toLeft - left);
  context.strokeStyle = ink;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(left, top);
  context.lineTo(toLeft, toTop);
  for (const side of [-0.45, 0.45]) {
    context.moveTo(toLeft, toTop);
    context.lineTo(toLeft - head * Math.cos(angle + side), toTop - head * Math.sin(angle + side));
  }
  context.stroke();
}

// ---- Hands ------------------------------------------------------------------------------------

function place(event) {
  const box = at("plane").getBoundingClientRect(), scale = (2 * SIDE) / box.width;
  return [(event.clientX - box.left) * scale - SIDE, SIDE - (event.clientY - box.top) * scale];
}

function startDrag(event, kind, index) {
  const mark = marks[kind][index], from = place(event), start = state[kind][index].at;
  event.preventDefault();
  mark.focus({ preventScroll: true });
  mark.setPointerCapture(event.pointerId);
  const drag = (moved) => {
    const to = place(moved);
    move(kind, index, [start[0] + to[0] - from[0], start[1] + to[1] - from[1]]);
  };
  const stop = () => {
    mark.removeEventListener("pointermove", drag);
    for (const end of ["pointerup", "pointercancel"]) mark.removeEventListener(end, stop);
  };
  mark.addEventListener("pointermove", drag);
  for (const end of ["pointerup", "pointercancel"]) mark.addEventListener(end, stop);
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function key(event, kind, index) {
  const [x, y] = state[kind][index].at, by = event.shiftKey ? 0.25 : 0.05;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (ARROWS[event.key]) {
    const [right, up] = ARROWS[event.key];
    move(kind, index, [x + by * right, y + by * up]);
  } else if (event.key === "Delete" || event.key === "Backspace") remove();
  else if (event.key === "+" || event.key === "=") weigh(1);
  else if (event.key === "-") weigh(-1);
  else return;
  event.preventDefault();
}

function setEpsilon(value, fromSlider) {
  if (!(value >= 1e-3 && value <= 1e3)) return;
  state.epsilon = value;
  if (fromSlider) at("epsilon").value = value;
  else at("epsilon-slider").value = Math.log10(value);
  changed();
}

function listen() {
  const on = (id, type, action) => at(id).addEventListener(type, action);
  on("add-source", "click", () => add("source"));
  on("add-target", "click", () => add("target"));
  on("delete", "click", remove);
  on("lighter", "click", () => weigh(-1));
  on("heavier", "click", () => weigh(1));
  on("resample", "click", () => { state.seed++; resample(); });
  for (const id of ["arrangement", "n", "m"]) on(id, "change", resample);
  on("view", "change", (event) => { state.view = event.target.value; schedule(); });
  on("count", "change", (event) => { state.count = Number(event.target.value); changed(); });
  on("epsilon-slider", "input", (event) => setEpsilon(Number((10 ** event.target.value).toPrecision(2)), true));
  on("epsilon", "input", (event) => setEpsilon(Number(event.target.value), false));
  on("plane", "dblclick", (event) => {
    if (!event.target.closest(".point")) add(event.shiftKey ? "target" : "source", place(event));
  });
  on("play", "click", () => { flow.pending = flow.pending > 1 ? 0 : Infinity; schedule(); });
  on("step", "click", () => { flow.pending = 1; schedule(); });
  for (const [id, type] of [["reset", "click"], ["step-size", "change"]]) on(id, type, () => { resetFlow(); schedule(); });
  on("python", "focus", (event) => event.target.select());
  addEventListener("resize", schedule);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", schedule);
}

listen();
setEpsilon(state.epsilon, true);
setEpsilon(state.epsilon, false);
resample();
