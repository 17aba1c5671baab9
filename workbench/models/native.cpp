// The parts of a decoder layer before and behind its attention, for few rows, in float32 from bfloat16 weights. Every
// sum runs in one order, whatever the number of rows or threads: a row's result is that of the row alone.

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

// data: of 16 outputs at a time, behind each other, the weights of two inputs in one integer, the first in its low half;
// the last 16 are filled up with zeros. inputs: even. bias: or null.
struct Matrix {
  const int32_t* data;
  const float* bias;
  int64_t outputs, inputs;
};

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
    for (int r = 0; r < ROWS; r++) {
      floats sum = even[b][r] + odd[b][r];
      int64_t start = (block + b) * BLOCK, count = m.outputs - start < BLOCK ? m.outputs - start : BLOCK;
      for (int64_t i = 0; m.bias && i < count; i++) sum[i] += m.bias[start + i];
      memcpy(y + r * m.outputs + start, &sum, count * sizeof(float));
    }
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

int64_t layer_bytes() { return sizeof(Layer) + sizeof(Segment); }
}
