// The parts of a decoder layer before and behind its attention, for few rows, in float32 from weights of 16, 8 or 4
// bits, and the figures of rows of logits. Every sum runs in one order, whatever the number of rows or threads: a row's
// result is that of the row alone.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

typedef float floats __attribute__((vector_size(64), aligned(4)));
typedef int32_t ints __attribute__((vector_size(64), aligned(4)));
constexpr int BLOCK = 16;

static inline floats load(const float* p) { return *(const floats*)p; }
static inline floats as_floats(ints wide) {
  floats out;
  memcpy(&out, &wide, sizeof out);
  return out;
}

// -- products -------------------------------------------------------------------------------------------------------

// data: of 16 outputs at a time, behind each other; the last 16 are filled up with zeros. bias: or null.
// bits: 16 for bfloat16, the weights of two inputs in one integer, the first in its low half; inputs are even. 8 or 4
// for codes: of every 32 inputs a scale, a lowest weight, and the codes, as many in one integer as it holds, the first
// lowest.
struct Matrix {
  const int32_t* data;
  const float* bias;
  int64_t outputs, inputs, bits;
};

constexpr int GROUP = 32;

static inline void put(const Matrix& m, int64_t block, floats sum, float* y) {
  int64_t start = block * BLOCK, count = m.outputs - start < BLOCK ? m.outputs - start : BLOCK;
  for (int64_t i = 0; m.bias && i < count; i++) sum[i] += m.bias[start + i];
  memcpy(y + start, &sum, count * sizeof(float));
}

template <int BLOCKS, int ROWS>
static inline void tile(const Matrix& m, int64_t block, const float* x, float* y) {
  floats even[BLOCKS][ROWS] = {}, odd[BLOCKS][ROWS] = {};
  int64_t pairs = m.inputs / 2;
  const int32_t* w = m.data + block * pairs * BLOCK;
  for (int64_t i = 0; i < pairs; i++)
    for (int b = 0; b < BLOCKS; b++) {
      ints pair = *(const ints*)(w + (b * pairs + i) * BLOCK);
      floats first = as_floats(pair << 16), second = as_floats(pair & (int32_t)0xFFFF0000);
      for (int r = 0; r < ROWS; r++) {
        even[b][r] += first * x[r * m.inputs + 2 * i];
        odd[b][r] += second * x[r * m.inputs + 2 * i + 1];
      }
    }
  for (int b = 0; b < BLOCKS; b++)
    for (int r = 0; r < ROWS; r++) put(m, block + b, even[b][r] + odd[b][r], y + r * m.outputs);
}

// totals: of x, over each group of inputs
template <int BITS, int ROWS>
static inline void tile_of_codes(const Matrix& m, int64_t block, const float* x, const float* totals, float* y) {
  int64_t groups = m.inputs / GROUP;
  const int32_t* w = m.data + block * groups * (2 + BITS) * BLOCK;
  floats sum[ROWS] = {};
  for (int64_t g = 0; g < groups; g++, w += (2 + BITS) * BLOCK) {
    floats scale = load((const float*)w), low = load((const float*)w + BLOCK), part[ROWS] = {};
    for (int j = 0; j < BITS; j++) {
      ints word = *(const ints*)(w + (2 + j) * BLOCK);
      for (int n = 0; n < 32 / BITS; n++) {
        floats code = __builtin_convertvector((word >> (n * BITS)) & ((1 << BITS) - 1), floats);
        for (int r = 0; r < ROWS; r++) part[r] += code * x[r * m.inputs + g * GROUP + j * (32 / BITS) + n];
      }
    }
    for (int r = 0; r < ROWS; r++) sum[r] += scale * part[r] + low * totals[r * groups + g];
  }
  for (int r = 0; r < ROWS; r++) put(m, block, sum[r], y + r * m.outputs);
}

template <int BITS>
static inline void rows_of_codes(const Matrix& m, int64_t block, const float* x, const float* totals, int64_t rows,
                                 float* y) {
  int64_t r = 0, groups = m.inputs / GROUP;
  for (; r + 4 <= rows; r += 4)
    tile_of_codes<BITS, 4>(m, block, x + r * m.inputs, totals + r * groups, y + r * m.outputs);
  if (r + 2 <= rows)
    tile_of_codes<BITS, 2>(m, block, x + r * m.inputs, totals + r * groups, y + r * m.outputs), r += 2;
  if (r < rows) tile_of_codes<BITS, 1>(m, block, x + r * m.inputs, totals + r * groups, y + r * m.outputs);
}

template <int BLOCKS>
static inline void rows_of(const Matrix& m, int64_t block, const float* x, int64_t rows, float* y) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) tile<BLOCKS, 4>(m, block, x + r * m.inputs, y + r * m.outputs);
  if (r + 2 <= rows) tile<BLOCKS, 2>(m, block, x + r * m.inputs, y + r * m.outputs), r += 2;
  if (r < rows) tile<BLOCKS, 1>(m, block, x + r * m.inputs, y + r * m.outputs);
}

static void multiply(const Matrix& m, const float* x, int64_t rows, float* y, int threads) {
  int64_t blocks = (m.outputs + BLOCK - 1) / BLOCK, several = blocks / 2;
  if (m.bits < 16) {
    int64_t groups = m.inputs / GROUP;
    std::vector<float> totals(rows * groups);
    for (int64_t i = 0; i < rows * groups; i++)
      for (int64_t j = 0; j < GROUP; j++) totals[i] += x[i * GROUP + j];
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t b = 0; b < blocks; b++)
      if (m.bits == 4) rows_of_codes<4>(m, b, x, totals.data(), rows, y);
      else rows_of_codes<8>(m, b, x, totals.data(), rows, y);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t b = 0; b < several; b++) rows_of<2>(m, 2 * b, x, rows, y);
  if (blocks % 2) rows_of<1>(m, blocks - 1, x, rows, y);
}

// -- norms and activations ------------------------------------------------------------------------------------------

struct Norm {  // absent where weight is null; a LayerNorm where centred
  const float *weight, *bias;
  float eps;
  int32_t centred;
};

static void normalise(const Norm& norm, const float* x, float* y, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; r++, x += width, y += width) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; norm.centred && i < width; i++) sum += x[i];
    float mean = (float)(sum / width);
    for (int64_t i = 0; i < width; i++) squares += (double)(x[i] - mean) * (x[i] - mean);
    float scale = (float)(1.0 / std::sqrt(squares / width + norm.eps));
    for (int64_t i = 0; i < width; i++)
      y[i] = (x[i] - mean) * scale * norm.weight[i] + (norm.bias ? norm.bias[i] : 0.0f);
  }
}

static inline floats exponential(floats x) {  // to two units in the last place; beyond float's range its ends
  const floats low = floats{} - 87.0f, high = floats{} + 88.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  floats shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  ints power;
  memcpy(&power, &shifted, sizeof power);
  floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  floats p = floats{} + 1.9875691500e-4f;
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = p * r + c;
  p = p * r * r + r + 1.0f;
  ints bits;
  memcpy(&bits, &p, sizeof bits);
  bits += (power - 0x4B400000) << 23;
  memcpy(&p, &bits, sizeof p);
  return x != x ? x : p;
}

static inline floats logistic(floats x) { return 1.0f / (1.0f + exponential(-x)); }

static inline floats activated(floats x, int64_t kind) {
  switch (kind) {
    case 0: return x * logistic(x);                                                    // silu
    case 1: return x * logistic(1.5957691216f * (x + 0.044715f * x * x * x));           // gelu, by tanh
    case 2: return x > 0.0f ? x : x != x ? x : floats{};                                // relu
  }
  for (int i = 0; i < BLOCK; i++) x[i] *= 0.5f * (1.0f + std::erf(x[i] * 0.70710678f));  // gelu
  return x;
}

// x [count] in its place, times what it gates where that is not null
static void activate(float* x, const float* gated, int64_t count, int64_t kind) {
  for (int64_t i = 0; i < count; i += BLOCK) {
    float part[2 * BLOCK] = {};
    int64_t some = count - i < BLOCK ? count - i : BLOCK;
    memcpy(part, x + i, some * sizeof(float));
    floats found = activated(load(part), kind);
    if (gated) memcpy(part + BLOCK, gated + i, some * sizeof(float)), found *= load(part + BLOCK);
    memcpy(x + i, &found, some * sizeof(float));
  }
}

static void add(const float* x, const float* y, float* out, int64_t count) {
  for (int64_t i = 0; i < count; i++) out[i] = x[i] + y[i];
}

// -- attention ------------------------------------------------------------------------------------------------------

struct Segment {  // keys and values of every head; mask: [rows, slots], or null; causal: the rows are its last slots
  const float *k, *v;
  const uint8_t* mask;
  int64_t slots, k_head, v_head, k_slot, v_slot, causal;
};

typedef float half __attribute__((vector_size(32), aligned(4)));
typedef float quarter __attribute__((vector_size(16), aligned(4)));

static inline float total(const floats& v) {
  half a = ((const half*)&v)[0] + ((const half*)&v)[1];
  quarter b = ((const quarter*)&a)[0] + ((const quarter*)&a)[1];
  return (b[0] + b[2]) + (b[1] + b[3]);
}

struct Queries {  // of one sequence: [rows, heads, dim] -> [rows, heads, values]
  const float* q;
  float* out;
  int64_t rows, heads, groups, dim, values;
  float scale;
};

// What SOME queries of a group read, from the one of that number on; they go row by row, and head by head in a row.
template <int SOME>
static void attend_some(const Queries& all, const Segment* segments, int64_t count, int64_t group, int64_t first,
                        std::vector<float>& scores) {
  int64_t slots = 0, at = 0, heads = all.heads / all.groups, row[SOME], place[SOME];
  for (int64_t s = 0; s < count; s++) slots += segments[s].slots;
  int64_t length = (slots + BLOCK - 1) / BLOCK * BLOCK;
  scores.assign(SOME * length, -INFINITY);
  floats most[SOME], sum[SOME] = {};
  for (int b = 0; b < SOME; b++) {
    row[b] = (first + b) / heads, place[b] = row[b] * all.heads + group * heads + (first + b) % heads;
    most[b] = floats{} - INFINITY;
  }
  for (int64_t s = 0; s < count; at += segments[s++].slots)
    for (int64_t j = 0; j < segments[s].slots; j++) {
      const float* k = segments[s].k + group * segments[s].k_head + j * segments[s].k_slot;
      floats sums[SOME] = {};
      float rest[SOME] = {};
      int64_t i = 0;
      for (; i + BLOCK <= all.dim; i += BLOCK)
        for (int b = 0; b < SOME; b++) sums[b] += load(all.q + place[b] * all.dim + i) * load(k + i);
      for (; i < all.dim; i++)
        for (int b = 0; b < SOME; b++) rest[b] += all.q[place[b] * all.dim + i] * k[i];
      for (int b = 0; b < SOME; b++) scores[b * length + at + j] = all.scale * (total(sums[b]) + rest[b]);
    }
  at = 0;
  for (int64_t s = 0; s < count; at += segments[s++].slots)
    for (int b = 0; (segments[s].mask || segments[s].causal) && b < SOME; b++)
      for (int64_t j = 0; j < segments[s].slots; j++)
        if (segments[s].mask ? !segments[s].mask[row[b] * segments[s].slots + j]
                             : j > segments[s].slots - all.rows + row[b])
          scores[b * length + at + j] = -INFINITY;
  for (int b = 0; b < SOME; b++) {
    float* mine = &scores[b * length];
    for (int64_t j = 0; j < length; j += BLOCK) {
      floats found = load(mine + j);
      most[b] = found > most[b] || found != found ? found : most[b];
    }
    float best = most[b][0];
    for (int i = 1; i < BLOCK; i++) best = most[b][i] > best || most[b][i] != most[b][i] ? most[b][i] : best;
    for (int64_t j = 0; j < length; j += BLOCK) {
      floats found = load(mine + j), weights = exponential(found - best);
      weights = found == -INFINITY ? floats{} : weights;
      memcpy(mine + j, &weights, sizeof weights);
      sum[b] += weights;
    }
  }
  for (int64_t i = 0; i < all.values; i += BLOCK) {
    int64_t some = all.values - i < BLOCK ? all.values - i : BLOCK;
    floats out[SOME] = {};
    at = 0;
    for (int64_t s = 0; s < count; at += segments[s++].slots) {
      const float* v = segments[s].v + group * segments[s].v_head + i;
      for (int64_t j = 0; j < segments[s].slots; j++, v += segments[s].v_slot) {
        floats part = {};
        if (some == BLOCK) part = load(v);
        else memcpy(&part, v, some * sizeof(float));
        for (int b = 0; b < SOME; b++) out[b] += scores[b * length + at + j] * part;
      }
    }
    for (int b = 0; b < SOME; b++) {
      out[b] /= total(sum[b]);
      memcpy(all.out + place[b] * all.values + i, &out[b], some * sizeof(float));
    }
  }
}

static void attend_group(const Queries& all, const Segment* segments, int64_t count, int64_t group,
                         std::vector<float>& scores) {
  int64_t t = 0, queries = all.rows * (all.heads / all.groups);
  for (; t + 4 <= queries; t += 4) attend_some<4>(all, segments, count, group, t, scores);
  for (; t + 2 <= queries; t += 2) attend_some<2>(all, segments, count, group, t, scores);
  if (t < queries) attend_some<1>(all, segments, count, group, t, scores);
}

// -- rows of logits -------------------------------------------------------------------------------------------------

// Calls part(16 of x, where they begin) for all of a row, which is filled up with -inf.
template <typename Part>
static inline void parts_of(const float* x, int64_t count, Part part) {
  int64_t i = 0;
  for (; i + BLOCK <= count; i += BLOCK) part(load(x + i), i);
  if (i < count) {
    floats last = floats{} - INFINITY;
    memcpy(&last, x + i, (count - i) * sizeof(float));
    part(last, i);
  }
}

static inline bool any(ints mask) {
  int32_t found = 0;
  for (int i = 0; i < BLOCK; i++) found |= mask[i];
  return found;
}

static float largest(const float* x, int64_t count) {  // NaN where there is one
  floats most = floats{} - INFINITY;
  parts_of(x, count, [&](floats v, int64_t) { most = v > most || v != v ? v : most; });
  float best = most[0];
  for (int i = 1; i < BLOCK; i++) best = most[i] > best || most[i] != most[i] ? most[i] : best;
  return best;
}

// Log-sum-exp is shifted by the largest; float sums of 64 parts at a time are added up in double.
static void figures_of(const float* x, int64_t count, int64_t id, int64_t top, double* out) {
  const float best = largest(x, count), mine = x[id];
  double mass = 0, first = 0, second = 0;
  floats masses = {}, firsts = {}, seconds = {};
  ints above = {}, alive = {};
  std::vector<float> values(top, -INFINITY);
  std::vector<int64_t> ids(top, -1);
  auto flush = [&] {
    mass += total(masses), first += total(firsts), second += total(seconds);
    masses = firsts = seconds = floats{};
  };
  parts_of(x, count, [&](floats v, int64_t at) {
    floats far = v - best;
    ints near = far >= -87.0f;  // else a weight of nothing, however large what it is of
    floats away = near ? far : floats{}, weight = near ? exponential(far) : floats{};
    masses += weight, firsts += weight * away, seconds += weight * away * away;
    above -= v > mine, alive -= v > -INFINITY;
    if (top && any(v > values[top - 1]))
      for (int64_t i = 0; i < BLOCK && at + i < count; i++)
        if (v[i] > values[top - 1]) {
          int64_t place = top - 1;
          for (; place && values[place - 1] < v[i]; place--) values[place] = values[place - 1], ids[place] = ids[place - 1];
          values[place] = v[i], ids[place] = at + i;
        }
    if (at / BLOCK % 64 == 63) flush();
  });
  flush();
  double lse = best + std::log(mass), mean = first / mass;
  double rank = 1, kept = 0;
  for (int i = 0; i < BLOCK; i++) rank += above[i], kept += alive[i];
  out[0] = std::log(mass) - mean, out[1] = second / mass - mean * mean, out[2] = mine - lse, out[3] = rank;
  for (int64_t i = 0; i < top; i++) out[4 + i] = values[i] - lse, out[4 + top + i] = ids[i];
  out[4 + 2 * top] = kept;
}

static inline uint64_t mixed(uint64_t v) {  // SplitMix64's finaliser
  v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9;
  v = (v ^ (v >> 27)) * 0x94D049BB133111EB;
  return v ^ (v >> 31);
}

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15;

static inline double perturbed(float score, uint64_t key, int64_t id) {  // by Gumbel noise
  double uniform = ((double)(mixed(key + (id + 1) * GOLDEN) >> 12) + 0.5) * 0x1p-52;
  return score - std::log(-std::log(uniform));
}

// -- a layer --------------------------------------------------------------------------------------------------------

struct Layer {
  Matrix q, k, v, out, gate, up, down;  // gate: data is null where nothing is gated
  Norm before, queries, keys, after, between, last;
  int64_t width, heads, groups, dim, turned, activation, wide;
};

static void turn(float* x, int64_t heads, int64_t dim, int64_t turned, const float* cos, const float* sin) {
  int64_t half = turned / 2;
  for (int64_t h = 0; h < heads; h++, x += dim)
    for (int64_t i = 0; i < half; i++) {
      float a = x[i], b = x[i + half];
      x[i] = a * cos[i] + b * sin[i];
      x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

extern "C" {

// x [rows, width] -> q [rows, heads, dim], k and v [rows, groups, dim]; cos, sin [rows, turned], of which the first
// half of the sines is negative.
void layer_before(const Layer* l, const float* x, int64_t rows, const float* cos, const float* sin, float* q, float* k,
                  float* v, int threads) {
  std::vector<float> normed(rows * l->width);
  if (l->before.weight) normalise(l->before, x, normed.data(), rows, l->width), x = normed.data();
  multiply(l->q, x, rows, q, threads);
  multiply(l->k, x, rows, k, threads);
  multiply(l->v, x, rows, v, threads);
  if (l->queries.weight) normalise(l->queries, q, q, l->wide ? rows : rows * l->heads, l->wide ? l->q.outputs : l->dim);
  if (l->keys.weight) normalise(l->keys, k, k, l->wide ? rows : rows * l->groups, l->wide ? l->k.outputs : l->dim);
  for (int64_t r = 0; l->turned && r < rows; r++, cos += l->turned, sin += l->turned) {
    turn(q + r * l->q.outputs, l->heads, l->dim, l->turned, cos, sin);
    turn(k + r * l->k.outputs, l->groups, l->dim, l->turned, cos, sin);
  }
}

// x [rows, width] and what attention read [rows, heads * dim] -> y [rows, width], behind the layer.
void layer_after(const Layer* l, const float* x, const float* read, int64_t rows, float* y, int threads) {
  int64_t count = rows * l->width, inner = rows * l->up.outputs;
  std::vector<float> part(count), normed(count), kept(inner), gate(l->gate.data ? inner : 0);
  multiply(l->out, read, rows, part.data(), threads);
  if (l->after.weight) normalise(l->after, part.data(), part.data(), rows, l->width);
  add(x, part.data(), y, count);
  const float* given = y;
  if (l->between.weight) normalise(l->between, y, normed.data(), rows, l->width), given = normed.data();
  multiply(l->up, given, rows, kept.data(), threads);
  if (l->gate.data) multiply(l->gate, given, rows, gate.data(), threads), gate.swap(kept);
  activate(kept.data(), l->gate.data ? gate.data() : nullptr, inner, l->activation);
  multiply(l->down, kept.data(), rows, part.data(), threads);
  if (l->last.weight) normalise(l->last, part.data(), part.data(), rows, l->width);
  add(y, part.data(), y, count);
}

void matrix_product(const Matrix* m, const float* x, int64_t rows, float* y, int threads) {
  multiply(*m, x, rows, y, threads);
}

// q [rows of all sequences, heads, dim] -> out [., heads, values]; each sequence has its rows and its segments.
void attend(const Segment* segments, const int64_t* counts, const int64_t* rows, int64_t sequences, const float* q,
            int64_t heads, int64_t groups, int64_t dim, int64_t values, float scale, float* out, int threads) {
  std::vector<Queries> each;
  std::vector<const Segment*> own;
  for (int64_t s = 0; s < sequences; segments += counts[s], q += rows[s] * heads * dim, out += rows[s] * heads * values, s++) {
    each.push_back({q, out, rows[s], heads, groups, dim, values, scale});
    own.push_back(segments);
  }
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> scores;
#pragma omp for schedule(static)
    for (int64_t t = 0; t < sequences * groups; t++)
      attend_group(each[t / groups], own[t / groups], counts[t / groups], t % groups, scores);
  }
}

// rows of logits [rows, count] -> the first of the largest of each, and whether all are finite numbers.
void row_best(const float* x, int64_t rows, int64_t count, int64_t* best, int64_t* finite) {
  for (int64_t r = 0; r < rows; r++, x += count) {
    float most = largest(x, count);
    ints odd = {};
    best[r] = count;
    parts_of(x, count, [&](floats v, int64_t at) {
      if (at + BLOCK <= count) odd |= v - v != floats{};
      ints here = v == most;
      if (best[r] == count && any(here))
        for (int i = BLOCK - 1; i >= 0; i--) best[r] = here[i] ? at + i : best[r];
    });
    bool sound = !any(odd);
    for (int64_t i = count / BLOCK * BLOCK; i < count; i++) sound = sound && std::isfinite(x[i]);
    finite[r] = sound;
  }
}

// rows of scores [rows, count], -inf where a token is ruled out -> of each, for its token ids[r]: entropy, variance of
// the surprisal, log-probability, rank, the top log-probabilities, their ids, how many tokens are not ruled out.
void row_figures(const float* x, int64_t rows, int64_t count, const int64_t* ids, int64_t top, double* out) {
  for (int64_t r = 0; r < rows; r++) figures_of(x + r * count, count, ids[r], top, out + r * (5 + 2 * top));
}

// The token of the largest sum of scores [count] and Gumbel noise; -1 where there is none. Most are ruled out in float:
// a uniform number that is no smaller than theirs would be too small for their score, with a margin for rounding. What is
// left is compared in double.
int64_t row_draw(const float* scores, int64_t count, uint64_t key) {
  int64_t found, sane;
  row_best(scores, 1, count, &found, &sane);
  if (found == count || scores[found] == -INFINITY) return -1;
  double most = perturbed(scores[found], key, found);
  parts_of(scores, count, [&](floats v, int64_t at) {
    floats uniform, least = exponential(-exponential(v - (float)most)) * (1 - 2e-5f);
    for (int i = 0; i < BLOCK; i++)
      uniform[i] = (float)(int32_t)((mixed(key + (at + i + 1) * GOLDEN) >> 40) + 1) * 0x1p-24f;
    if (any(uniform >= least))
      for (int64_t i = 0; i < BLOCK && at + i < count; i++) {
        double own = uniform[i] >= least[i] ? perturbed(v[i], key, at + i) : -INFINITY;
        if (own > most || (own == most && at + i < found)) most = own, found = at + i;
      }
  });
  return found;
}

int64_t layer_bytes() { return sizeof(Layer) + sizeof(Segment); }
}
