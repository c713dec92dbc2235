// The mathematics of the page: exact transport, entropic transport, the gradient flow.
//
// Conventions are those of the library. The ground cost is half the squared distance, epsilon is in
// length^2, and plan_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon). Nothing here knows of a
// browser. All numbers are float64. Clouds are lists of [x, y], matrices lists of rows.

const THRESHOLD = 1e-5; // L1 marginal error [mass, total 1] at which a solve has converged
const MAX_ITERATIONS = 20000;
const ROUND = 5; // iterations between two exponentials of the cost matrix
const ANNEALING = 0.25; // factor from one epsilon to the next, on the way down to the wanted one
const MAX_RELAXATION = 1.97; // of over-relaxed updates: below 2, where they stop contracting
const SELF_RELAXATION = 2 / 3; // damps the update of a cloud with itself
const STALE = 0.5; // marginal error above which updates are not over-relaxed

function sum(values) {
  let total = 0;
  for (const value of values) total += value;
  return total;
}

/** Weights that sum to 1, from positive masses. */
function distribution(masses) {
  const total = sum(masses);
  return Float64Array.from(masses, (mass) => mass / total);
}

/** C_ij = |x_i - y_j|^2 / 2 [length^2]. */
function halfSquares(x, y) {
  return x.map((p) => Float64Array.from(y, (q) => 0.5 * ((p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2)));
}

/** <matrix, plan>. */
function inner(matrix, plan) {
  return sum(matrix.map((row, i) => sum(row.map((value, j) => value * plan[i][j]))));
}

function rowSums(plan) {
  return plan.map(sum);
}

function columnSums(plan) {
  const sums = new Float64Array(plan[0].length);
  for (const row of plan) row.forEach((mass, j) => (sums[j] += mass));
  return sums;
}

// ---- Exact transport --------------------------------------------------------------------------

/**
 * An exact plan between whole numbers of units of mass, with equal totals; in the same units.
 *
 * Shortest augmenting paths with dual prices, as Jonker and Volgenant solve the assignment
 * problem: that is the case in which every supply and demand is 1. With whole numbers no mass is
 * rounded.
 */
function exactFlow(cost, supply, demand) {
  const n = supply.length, m = demand.length;
  const flow = cost.map(() => new Float64Array(m));
  const prices = { rows: new Float64Array(n), columns: new Float64Array(m) };
  const missing = Float64Array.from(demand);
  for (let source = 0; source < n; source++) {
    for (let left = supply[source]; left > 0; ) {
      const path = shortestPath(cost, flow, prices, missing, source);
      left -= augment(flow, missing, path, left);
    }
  }
  return flow;
}

/** The cheapest way (Dijkstra) from a row to a column that misses mass; updates the prices. */
function shortestPath(cost, flow, prices, missing, source) {
  const n = cost.length, m = missing.length;
  const { rows, columns } = prices;
  const toRow = new Float64Array(n).fill(Infinity), toColumn = new Float64Array(m).fill(Infinity);
  const rowBefore = new Int32Array(m), columnBefore = new Int32Array(n).fill(-1);
  const done = new Uint8Array(m);
  const fresh = [source]; // rows that were reached and not yet left
  toRow[source] = 0;
  for (;;) {
    for (const i of fresh.splice(0)) {
      for (let j = 0; j < m; j++) {
        const reached = toRow[i] + Math.max(cost[i][j] - rows[i] - columns[j], 0);
        if (!done[j] && reached < toColumn[j]) {
          toColumn[j] = reached;
          rowBefore[j] = i;
        }
      }
    }
    let next = -1;
    for (let j = 0; j < m; j++) {
      if (!done[j] && (next < 0 || toColumn[j] < toColumn[next])) next = j;
    }
    done[next] = 1;
    if (missing[next] > 0) {
      const end = toColumn[next];
      for (let i = 0; i < n; i++) if (toRow[i] < end) rows[i] += end - toRow[i];
      for (let j = 0; j < m; j++) if (done[j]) columns[j] -= end - toColumn[j];
      return { source, end: next, rowBefore, columnBefore };
    }
    for (let i = 0; i < n; i++) {
      // Back along mass that is there, which costs nothing: its price is its cost.
      if (flow[i][next] > 0 && toRow[i] === Infinity) {
        toRow[i] = toColumn[next];
        columnBefore[i] = next;
        fresh.push(i);
      }
    }
  }
}

/** Sends as much as the path takes, at most `left`. */
function augment(flow, missing, path, left) {
  const steps = [];
  for (let j = path.end; j >= 0; ) {
    const i = path.rowBefore[j], before = i === path.source ? -1 : path.columnBefore[i];
    steps.push([i, j, before]);
    j = before;
  }
  let amount = Math.min(left, missing[path.end]);
  for (const [i, , before] of steps) if (before >= 0) amount = Math.min(amount, flow[i][before]);
  for (const [i, j, before] of steps) {
    flow[i][j] += amount;
    if (before >= 0) flow[i][before] -= amount;
  }
  missing[path.end] -= amount;
  return amount;
}

/** The exact plan between clouds with whole masses: plan [mass, total 1] and cost [length^2]. */
function exactPlan(cost, massesX, massesY) {
  const totalX = sum(massesX), totalY = sum(massesY), units = totalX * totalY;
  const supply = massesX.map((mass) => mass * totalY);
  const demand = massesY.map((mass) => mass * totalX);
  const plan = exactFlow(cost, supply, demand).map((row) => row.map((mass) => mass / units));
  return { plan, cost: inner(cost, plan) };
}

/** Column j[i] that row i is matched to, at the least sum of costs; as many rows as columns. */
function assignment(cost) {
  const ones = cost.map(() => 1);
  return exactFlow(cost, ones, ones).map((row) => row.indexOf(1));
}

// ---- Entropic transport -----------------------------------------------------------------------

/** D_ij = exp((f_i + g_j - C_ij) / epsilon), the plan's density with respect to a x b. */
function density(cost, f, g, epsilon) {
  return cost.map((row, i) => row.map((c, j) => Math.exp((f[i] + g[j] - c) / epsilon)));
}

/** s_i = sum_j D_ij w_j, one number a row. */
function timesColumns(D, w, sums) {
  for (let i = 0; i < D.length; i++) {
    const row = D[i];
    let total = 0;
    for (let j = 0; j < row.length; j++) total += row[j] * w[j];
    sums[i] = total;
  }
}

/** s_j = sum_i D_ij w_i, one number a column. */
function timesRows(D, w, sums) {
  sums.fill(0);
  for (let i = 0; i < D.length; i++) {
    const row = D[i], weight = w[i];
    for (let j = 0; j < row.length; j++) sums[j] += row[j] * weight;
  }
}

/** f_i = -epsilon log sum_j b_j exp((g_j - C_ij) / epsilon), safe at every epsilon. */
function softmin(cost, g, epsilon, b) {
  return Float64Array.from(cost, (row) => {
    let largest = -Infinity;
    for (let j = 0; j < row.length; j++) largest = Math.max(largest, g[j] - row[j]);
    let total = 0;
    for (let j = 0; j < row.length; j++) total += b[j] * Math.exp((g[j] - row[j] - largest) / epsilon);
    return -largest - epsilon * Math.log(total);
  });
}

function transposed(matrix) {
  return Array.from(matrix[0], (_, j) => Float64Array.from(matrix, (row) => row[j]));
}

/** The larger L1 error [mass] of a plan's marginals, from its density. */
function marginalError(D, a, b) {
  const rows = new Float64Array(a.length), columns = new Float64Array(b.length);
  timesColumns(D, b, rows);
  timesRows(D, a, columns);
  const excess = (weights, sums) => sum(weights.map((w, i) => w * Math.abs(sums[i] - 1)));
  return Math.max(excess(a, rows), excess(b, columns));
}

/**
 * A solve between two clouds that has made no iteration at its final epsilon yet.
 *
 * From `potential` (g of a nearby problem) where it is of use, else from potentials that were
 * annealed: two iterations at each epsilon from the largest cost down, by factors of 4.
 */
function startSolve(x, y, epsilon, a, b, potential) {
  const cost = halfSquares(x, y), back = transposed(cost);
  const problem = { x, y, cost, back, epsilon, a, b, self: false };
  if (potential) {
    const f = softmin(cost, potential, epsilon, b);
    const state = measured(problem, f, softmin(back, f, epsilon, a), 1);
    if (state.error < STALE) return state;
  }
  let g = new Float64Array(b.length), f, iterations = 0;
  let annealed = Math.max(...cost.map((row) => Math.max(...row)));
  for (; annealed > epsilon; annealed *= ANNEALING) {
    for (let i = 0; i < 2; i++, iterations++) {
      f = softmin(cost, g, annealed, b);
      g = softmin(back, f, annealed, a);
    }
  }
  f = softmin(cost, g, epsilon, b);
  return measured(problem, f, softmin(back, f, epsilon, a), iterations + 1);
}

/** The same for a cloud and itself, whose two potentials are one. */
function startSelf(x, epsilon, a, potential) {
  const cost = halfSquares(x, x);
  const problem = { x, y: x, cost, back: cost, epsilon, a, b: a, self: true };
  const identity = a.map((weight) => -0.5 * epsilon * Math.log(weight));
  const states = [identity, softmin(cost, identity, epsilon, a)]
    .concat(potential ? [potential] : [])
    .map((f) => measured(problem, f, f, 0));
  return states.reduce((best, state) => (state.error < best.error ? state : best));
}

function measured(problem, f, g, iterations) {
  const D = density(problem.cost, f, g, problem.epsilon);
  const error = marginalError(D, problem.a, problem.b);
  return { problem, f, g, D, error, iterations, relaxation: 1, previous: Infinity };
}

function converged(state) {
  return state.error <= THRESHOLD;
}

function finished(state) {
  return converged(state) || state.iterations >= MAX_ITERATIONS;
}

/** One round of iterations at the final epsilon, and the error of the potentials that it left. */
function advance(state) {
  const after = state.problem.self ? selfRound(state) : round(state);
  if (!Number.isFinite(after.error)) return plainRound(state);
  if (state.problem.self) return after;
  return { ...after, relaxation: relaxation(state.relaxation, after.error, state.error) };
}

/** u <- u (u s)^-omega, on a density that holds the potentials; then these take the scalings in. */
function round(state) {
  const { cost, epsilon, a, b } = state.problem, { D, relaxation: omega } = state;
  const u = new Float64Array(a.length).fill(1), v = new Float64Array(b.length).fill(1);
  const rows = new Float64Array(a.length), columns = new Float64Array(b.length);
  for (let iteration = 0; iteration < ROUND; iteration++) {
    timesColumns(D, v.map((value, j) => value * b[j]), rows);
    rescale(u, rows, omega);
    timesRows(D, u.map((value, i) => value * a[i]), columns);
    rescale(v, columns, omega);
  }
  const f = state.f.map((value, i) => value + epsilon * Math.log(u[i]));
  const g = state.g.map((value, j) => value + epsilon * Math.log(v[j]));
  return measured(state.problem, f, g, state.iterations + ROUND);
}

function selfRound(state) {
  const { epsilon, a } = state.problem;
  const u = new Float64Array(a.length).fill(1), rows = new Float64Array(a.length);
  for (let iteration = 0; iteration < ROUND; iteration++) {
    timesColumns(state.D, u.map((value, i) => value * a[i]), rows);
    rescale(u, rows, SELF_RELAXATION);
  }
  const f = state.f.map((value, i) => value + epsilon * Math.log(u[i]));
  return measured(state.problem, f, f, state.iterations + ROUND);
}

function rescale(scaling, products, omega) {
  for (let i = 0; i < scaling.length; i++) scaling[i] *= (scaling[i] * products[i]) ** -omega;
}

/** An iteration whose exponentials cannot overflow, for potentials far from the solution. */
function plainRound(state) {
  const { cost, back, epsilon, a, b, self } = state.problem;
  let f = softmin(cost, state.g, epsilon, b);
  if (self) f = f.map((value, i) => state.f[i] + SELF_RELAXATION * (value - state.f[i]));
  return measured(state.problem, f, self ? f : softmin(back, f, epsilon, a), state.iterations + 1);
}

/**
 * Over-relaxation from the decay of the error over one round, by Young's relation: an iteration
 * with relaxation w that contracts by r comes from a plain one that contracts by
 * rho = (r + w - 1)^2 / (r w^2), whose best relaxation is 2 / (1 + sqrt(1 - rho)).
 */
function relaxation(omega, error, previous) {
  if (!(error < STALE)) return 1;
  if (!(error < previous)) return omega;
  const rate = Math.min(Math.max((error / previous) ** (1 / ROUND), omega - 1, 1e-3), 1);
  const plain = (rate + omega - 1) ** 2 / (rate * omega ** 2);
  return Math.min(2 / (1 + Math.sqrt(Math.max(1 - plain, 0))), MAX_RELAXATION);
}

/** Advances until the solve is finished or, if there is one, `deadline()` says stop. */
function solveOn(state, deadline) {
  while (!finished(state) && !(deadline && deadline())) state = advance(state);
  return state;
}

/**
 * Textbook scaling u <- a / (K v), v <- b / (K^T u) from v = 1, stopped after `count` iterations;
 * in the log domain, where it is the same.
 */
function scaled(x, y, epsilon, a, b, count) {
  const cost = halfSquares(x, y), back = transposed(cost);
  const problem = { x, y, cost, back, epsilon, a, b, self: false };
  let g = b.map((weight) => -epsilon * Math.log(weight)), f;
  for (let i = 0; i < count; i++) {
    f = softmin(cost, g, epsilon, b);
    g = softmin(back, f, epsilon, a);
  }
  return measured(problem, f, g, count);
}

// ---- What a solve says ------------------------------------------------------------------------

/** W_epsilon = <a, f> + <b, g> - epsilon (mass - 1) [length^2], of second order in the error. */
function value({ problem, f, g, D }) {
  const { a, b, epsilon } = problem;
  const mass = sum(D.map((row, i) => a[i] * sum(row.map((d, j) => d * b[j]))));
  return sum(a.map((w, i) => w * f[i])) + sum(b.map((w, j) => w * g[j])) - epsilon * (mass - 1);
}

function plan({ problem, D }) {
  return D.map((row, i) => row.map((d, j) => problem.a[i] * problem.b[j] * d));
}

/** Mean over x_i, weighted by a, of 1 / sum_j pi~_ij^2 with rows pi~ of sum 1. */
function neighbours({ problem, D }) {
  const { a, b } = problem;
  return sum(
    D.map((row, i) => {
      const masses = row.map((d, j) => d * b[j]);
      return (a[i] * sum(masses) ** 2) / sum(masses.map((mass) => mass * mass));
    }),
  );
}

/** T(x_i) = sum_j pi_ij y_j / sum_j pi_ij, where the plan sends each x_i on average. */
function barycentricMap({ problem, D }) {
  const { y, b } = problem;
  return D.map((row) => {
    const masses = row.map((d, j) => d * b[j]), total = sum(masses);
    return [0, 1].map((axis) => sum(masses.map((mass, j) => mass * y[j][axis])) / total);
  });
}

// ---- The gradient flow ------------------------------------------------------------------------

/** Solves of x to y, of x to itself and of y to itself, each from nearby potentials if given. */
function startAll(x, y, epsilon, a, b, near = {}) {
  return {
    xy: startSolve(x, y, epsilon, a, b, near.xy && near.xy.g),
    xx: startSelf(x, epsilon, a, near.xx && near.xx.f),
    yy: startSelf(y, epsilon, b, near.yy && near.yy.f),
  };
}

function solveAll(solves, deadline) {
  const entries = Object.entries(solves);
  return Object.fromEntries(entries.map(([name, state]) => [name, solveOn(state, deadline)]));
}

/** S_epsilon = W(x, y) - W(x, x) / 2 - W(y, y) / 2 [length^2]. */
function divergence({ xy, xx, yy }) {
  return value(xy) - 0.5 * value(xx) - 0.5 * value(yy);
}

/**
 * T_xy - T_xx, minus the Wasserstein gradient of S_epsilon, or, without the self term, T_xy - x,
 * that of W_epsilon [length per unit of flow time].
 */
function velocity({ xy, xx }, debiased) {
  const ahead = barycentricMap(xy), from = debiased ? barycentricMap(xx) : xy.problem.x;
  return ahead.map((image, i) => [image[0] - from[i][0], image[1] - from[i][1]]);
}

/** Root of the weighted mean squared distance from the mean [length]. */
function spread(x, a) {
  const mean = [0, 1].map((axis) => sum(x.map((p, i) => a[i] * p[axis])));
  return Math.sqrt(sum(x.map((p, i) => a[i] * ((p[0] - mean[0]) ** 2 + (p[1] - mean[1]) ** 2))));
}

/** Particles after one Euler step. */
function eulerStep(x, v, stepSize) {
  return x.map((p, i) => [p[0] + stepSize * v[i][0], p[1] + stepSize * v[i][1]]);
}
