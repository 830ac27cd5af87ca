// Attention of some queries to all keys, without a table of all scores: keys come in blocks, and what was summed up before a
// larger score is scaled down by as much (Milakov and Gimelshein, 2018; Dao et al., 2022).
//
// A lane is a query. Scores and outputs are sums over rows of eight, as those of the convolutions.
#include "sums.h"

enum { VECTORS = LOOK_QUERIES / 16, WIDTH = LOOK_QUERIES };

// Queries [queries, size], scaled, to [size, 32]; zeros for those that are not there.
static void turn_queries(const Look *l, const float *query, int queries, float *turned) {
  for (int d = 0; d < l->size; d++)
    for (int q = 0; q < WIDTH; q++) turned[d * WIDTH + q] = q < queries ? query[(size_t)q * l->size + d] * l->scale : 0;
}

// Scores [keys, 32] to exp(score - largest); returns their sums, and by how much `largest` has grown, in `factor`.
INLINE void to_shares(float *scores, int keys, f32x16 *largest, f32x16 *sum, f32x16 *factor) {
  for (int v = 0; v < VECTORS; v++) {
    f32x16 most = largest[v], total = {0};
    for (int k = 0; k < keys; k++) most = larger(most, load16(scores + k * WIDTH + 16 * v));
    for (int k = 0; k < keys; k++) {
      const f32x16 share = exp16(load16(scores + k * WIDTH + 16 * v) - most);
      store16(scores + k * WIDTH + 16 * v, share);
      total += share;
    }
    factor[v] = exp16(largest[v] - most);
    sum[v] = sum[v] * factor[v] + total;
    largest[v] = most;
  }
}

void OWN(look)(const Look *l, const float *query, int queries, float *output, float *room) {
  const int tiles = (l->value_size + 7) / 8;
  float *turned = room, *scores = turned + (size_t)l->size * WIDTH, *some = scores + LOOK_KEYS * WIDTH;
  float *means = some + 8 * WIDTH;
  f32x16 largest[VECTORS], sum[VECTORS] = {{0}}, factor[VECTORS];
  for (int v = 0; v < VECTORS; v++) largest[v] = all16(-3e38f);
  memset(means, 0, sizeof(float) * 8 * tiles * WIDTH);
  turn_queries(l, query, queries, turned);
  for (int first = 0; first < l->keys; first += LOOK_KEYS) {
    const int keys = l->keys - first < LOOK_KEYS ? l->keys - first : LOOK_KEYS;
    for (int k = 0; k < keys; k += 8)
      multiply(l->packed_keys + (size_t)(first + k) * l->size, turned, l->size, VECTORS, scores + k * WIDTH);
    to_shares(scores, keys, largest, sum, factor);
    for (int t = 0; t < tiles; t++) {
      multiply(l->packed_values + ((size_t)t * l->keys + first) * 8, scores, keys, VECTORS, some);
      for (int i = 0; i < 8 * VECTORS; i++) {
        float *mean = means + ((size_t)t * 8 * VECTORS + i) * 16;
        store16(mean, load16(mean) * factor[i % VECTORS] + load16(some + i * 16));
      }
    }
  }
  for (int v = 0; v < VECTORS; v++) {
    const f32x16 share = 1.0f / sum[v];
    for (int d = 0; d < l->value_size; d++) {
      const f32x16 mean = load16(means + d * WIDTH + 16 * v) * share;
      for (int q = 16 * v; q < queries && q < 16 * (v + 1); q++) output[(size_t)q * l->value_size + d] = mean[q % 16];
    }
  }
}
