// The kernels, once for each instruction set that they are compiled for.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { TILE = 16, BLOCK = 32 };  // rows, inputs

// Weights [rows, inputs] in tiles of 16 rows: for each block of 32 inputs a record of codes and 16 float16 scales. One thread
// reads its tiles as one stream, which is what memory is fastest at. Byte 64j + 4r + c of a record belongs to row r:
//   4 bits: two codes of 0 to 15, where 8 means zero: input 4j+c low, input 16+4j+c high (256 bytes)
//   8 bits: the code of input 4j+c, from -128 to 127 (512 bytes)
static inline size_t codes_bytes(int bits) { return (size_t)TILE * BLOCK * bits / 8; }
static inline size_t record_bytes(int bits) { return codes_bytes(bits) + 2 * TILE; }

// Activations [tokens, inputs], each block of 32 with its own scale (largest absolute value = 127).
typedef struct {
  const int8_t *codes;    // [tokens, inputs]
  const float *scales;    // [tokens, blocks]
  const int32_t *sums;    // [tokens, blocks]: of a block's codes; times the offset of the weights' codes they are too much
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

// Values [channels, plane] of one group, to mean 0 and variance 1, times `scale` plus `bias` of their channel.
typedef struct {
  const float *values, *scale, *bias;
  float *output;  // may be `values`
  size_t channels, plane;
  float epsilon;
  int silu;  // whether what comes out is multiplied by its sigmoid
} Group;

enum { NO_ACTIVATION, RELU, LEAKY_RELU, TANH };
enum { MAX_PHASES = 16, SLACK = 32 };  // SLACK: floats behind the last row of input that may be read, and do not matter

// The output pixels phase, phase + phases, .. of a row: each the sum of its taps, which lie at `offsets` from its input pixel.
typedef struct {
  int taps, pixels;
  const ptrdiff_t *offsets;
  const float *weights;  // [tiles, ..] with [taps, inputs, TILE] of each; of few outputs [taps, inputs, outputs]
} Phase;

// Rows of output, of which each belongs to a row of input. `rows` of them are in an image, the images one behind the other.
typedef struct {
  int inputs, outputs, few, rows, columns, phases;  // columns: of a row of output
  const Phase *phase;
  size_t tile_step;  // from the weights of a tile to those of the next
  const float *input, *bias;  // rows [inputs, width]; [outputs up to a multiple of TILE]
  size_t width, input_row, input_image;
  float *output;
  size_t plane, output_row, output_image;
  int activation;
  float slope;
} Convolution;

enum { WINOGRAD_ROWS = 8 };  // output channels whose weights lie side by side

// A convolution of 3 x 3 of one image [inputs, height, width] to [outputs, out_height, out_width].
typedef struct {
  int inputs, outputs, height, width, out_height, out_width, pad_top, pad_left, activation;
  float alpha;
  const float *weights;  // [tiles of 8 outputs, 36 points, inputs, 8]
  const float *bias;     // [outputs], or NULL
  const float *input, *added;  // added: as the output, or NULL
  float *output;
} Winograd;

// A block of tiles of 4 x 4 pixels: `rows` and `columns` of them, together 16 * vectors.
typedef struct {
  int row, column, rows, columns, vectors;
} Tiles;

// Values [points, inputs, vectors * 16]: how far a point's are from the next one's. Not a power of two, which caches dislike.
static inline size_t winograd_panel(int inputs, int vectors) { return (size_t)inputs * 16 * vectors + 16; }

// A transposed convolution of 4 x 4 in steps of 2: images [inputs, height, width] to [outputs, out_height, out_width], where
// pad_top rows and pad_left columns are cut off. A tile: 4 x 4 pixels, the next one DOUBLING_STEP further.
enum { DOUBLING_STEP = 3 };
typedef struct {
  int inputs, outputs, images, height, width, out_height, out_width, pad_top, pad_left, tiles_down, tiles_across, activation;
  float slope;
  const float *weights;  // [tiles of 8 outputs, 4 phases, 16 points, inputs, 8]
  const float *bias;     // [outputs], or NULL
  const float *input;
  float *output;
} Doubling;

// What the queries of one head see: all keys of it.
enum { LOOK_QUERIES = 32, LOOK_KEYS = 128 };  // queries, and keys, at once
typedef struct {
  int keys, size, value_size;
  float scale;
  const float *packed_keys;    // [tiles of 8 keys, size, 8], the last tile filled up with zeros
  const float *packed_values;  // [tiles of 8 of value_size, keys, 8]
} Look;

typedef void QuantizeKernel(const float *input, int blocks, int8_t *codes, float *scales, int32_t *sums);
typedef void MatMulKernel(const uint8_t *weights, int bits, int blocks, int rows, int first_tile, int last_tile, int tokens,
                          Activations a, const float *bias, float *output);
// Queries first_query .. last_query of one key/value head over the keys first_key .. last_key.
typedef void AttendKernel(const Attention *a, int kv_head, int first_query, int last_query, int first_key, int last_key,
                          Partial *p);
typedef void JoinKernel(const Attention *a, int kv_head, int first_query, int last_query, int pieces, const Partial *p);
typedef void NormalizeKernel(const Group *g);
// Rows first_row .. last_row of the channels of first_tile .. last_tile; with few outputs of all channels.
typedef void ConvolveKernel(const Convolution *c, int first_tile, int last_tile, int first_row, int last_row);

// The values of channels first .. last; `pixels` is room for the pixels of a block.
typedef void WinogradInputKernel(const Winograd *c, const Tiles *b, int first, int last, float *pixels, float *values);
// The channels first .. last of a block, first a multiple of 8; `sums` is room for [36, 8, vectors * 16].
typedef void WinogradOutputKernel(const Winograd *c, const Tiles *b, const float *values, int first, int last, float *sums);

// The values [16 points, ..] of channels first .. last, for 16 * vectors tiles; those that are not there have zeros.
typedef void DoublingInputKernel(const Doubling *c, int first_tile, int vectors, int first, int last, float *values);
// The channels first .. last of such tiles, first a multiple of 8; `room` is for [16 + 36, 8, vectors * 16].
typedef void DoublingOutputKernel(const Doubling *c, int first_tile, int vectors, const float *values, int first, int last,
                                  float *room);

// Queries [up to LOOK_QUERIES, size] to what they see, [queries, value_size]. `room` is for as many floats as look_room() says.
typedef void LookKernel(const Look *l, const float *query, int queries, float *output, float *room);
static inline size_t look_room(int size, int value_size) {
  return (size_t)LOOK_QUERIES * (size_t)(size + LOOK_KEYS + 8 + (value_size + 7) / 8 * 8);
}

typedef struct {
  const char *name;
  QuantizeKernel *quantize;
  MatMulKernel *matmul;
  AttendKernel *attend;
  JoinKernel *join;
  NormalizeKernel *normalize;
  ConvolveKernel *convolve;
  WinogradInputKernel *winograd_input;
  WinogradOutputKernel *winograd_output;
  DoublingInputKernel *doubling_input;
  DoublingOutputKernel *doubling_output;
  LookKernel *look;
} Kernels;

extern const Kernels kernels_avx512vnni, kernels_avx2, kernels_neon;

#ifdef ISA  // what is compiled once for each instruction set has its name behind its own
#define OWN_OF(name, isa) name##_##isa
#define OWN_IN(name, isa) OWN_OF(name, isa)
#define OWN(name) OWN_IN(name, ISA)
QuantizeKernel OWN(quantize);
MatMulKernel OWN(matmul);
AttendKernel OWN(attend);
JoinKernel OWN(join);
NormalizeKernel OWN(normalize);
ConvolveKernel OWN(convolve);
WinogradInputKernel OWN(winograd_input);
WinogradOutputKernel OWN(winograd_output);
DoublingInputKernel OWN(doubling_input);
DoublingOutputKernel OWN(doubling_output);
LookKernel OWN(look);
#endif
