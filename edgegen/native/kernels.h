// The kernels, once for each instruction set that they are compiled for.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { TILE = 16, BLOCK = 32, RECORD = TILE * BLOCK / 2 + 2 * TILE };  // rows, inputs, bytes

// Weights [rows, inputs] in tiles of 16 rows: for each block of 32 inputs a record of 256 bytes of codes and 16 float16 scales.
// Byte 64j + 4r + c of a record holds the codes (0 to 15, 8 means zero) of row r: input 4j+c low, input 16+4j+c high. One thread
// reads its tiles as one stream, which is what memory is fastest at.

// Activations [tokens, inputs], each block of 32 with its own scale (largest absolute value = 127).
typedef struct {
  const int8_t *codes;    // [tokens, inputs]
  const float *scales;    // [tokens, blocks]
  const int32_t *starts;  // [tokens, blocks]: -8 times the sum of a block's codes, which takes the weights' offset back
} Activations;

typedef struct {
  int heads, kv_heads, size;  // of one head: a multiple of 16, at most MAX_HEAD
  int past, tokens, capacity; // entries that the cache held, that are new, that it has room for
  int window;                 // how far a token looks back, itself included; 0: to the beginning
  float softcap;              // 0: none
  const float *query;         // [heads, tokens, size], turned and scaled
  const float *keys, *values; // [kv_heads, capacity, size]
  float *output;              // [tokens, heads, size]
} Attention;

enum { MAX_HEAD = 256, MAX_ROWS = 32, SPLIT = 256 };  // rows: (query, head) pairs that read the same keys; keys of one piece

// What one piece of the keys says: to be joined with the others.
typedef struct {
  float largest[MAX_ROWS], sum[MAX_ROWS];
  float mean[MAX_ROWS * MAX_HEAD];  // not yet divided by the sum
} Partial;

typedef struct {
  const char *name;
  void (*quantize)(const float *input, int blocks, int8_t *codes, float *scales, int32_t *starts);
  void (*matmul)(const uint8_t *weights, int blocks, int rows, int first_tile, int last_tile, int tokens, Activations a,
                 const float *bias, float *output);
  // Queries first_query .. last_query of one key/value head over the keys first_key .. last_key.
  void (*attend)(const Attention *a, int kv_head, int first_query, int last_query, int first_key, int last_key, Partial *p);
  void (*join)(const Attention *a, int kv_head, int first_query, int last_query, int pieces, const Partial *p);
} Kernels;

extern const Kernels kernels_avx512vnni, kernels_avx2, kernels_neon;
