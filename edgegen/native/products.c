// Matrix products with weights of 4 and 8 bits.
#include "kernels.h"
#include "lanes.h"

void OWN(quantize)(const float *input, int blocks, int8_t *codes, float *scales, int32_t *sums) {
  for (int b = 0; b < blocks; b++, input += BLOCK, codes += BLOCK) {
    f32x16 x = load16(input), y = load16(input + 16);
    const float top = largest_of(larger(larger(x, -x), larger(y, -y)));
    const float inverse = top > 0 ? 127.0f / top : 0;
    const i32x16 p = nearest(x * inverse), q = nearest(y * inverse);
    store_int8(codes, p);
    store_int8(codes + 16, q);
    scales[b] = top / 127.0f;
    sums[b] = total_of(p + q);
  }
}

// The codes of a record, four inputs of each row at a time; the offset of these codes, which is to be taken back.
INLINE int unpack(const uint8_t *record, int bits, u8x64 *weights) {
  for (int j = 0; j < 4; j++) {
    if (bits == 4) {
      const u8x64 pair = load_bytes(record + 64 * j);
      weights[j] = pair & 15;
      weights[4 + j] = pair >> 4;
    } else {
      weights[j] = load_bytes(record + 64 * j) ^ SIGN;
      weights[4 + j] = load_bytes(record + 64 * (4 + j)) ^ SIGN;
    }
  }
  return bits == 4 ? 8 : SIGN;
}

// One tile of 16 rows for `tokens` tokens; `bits` and `tokens` are constants wherever this is called.
INLINE void tile(const uint8_t *record, int bits, int blocks, int tokens, const int8_t *codes, const float *scales,
                 const int32_t *block_sums, f32x16 *result) {
  const int inputs = blocks * BLOCK;
  f32x16 sums[16];  // not `result`, which the compiler must think of as memory that the weights may lie in
  for (int m = 0; m < tokens; m++) sums[m] = (f32x16){0};
  for (int b = 0; b < blocks; b++, record += record_bytes(bits)) {
    u8x64 weights[8];
    const int offset = unpack(record, bits, weights);
    const f32x16 scale = from_half16((const uint16_t *)(record + codes_bytes(bits)));
    for (int m = 0; m < tokens; m++) {
      const int8_t *four = codes + (size_t)m * inputs + b * BLOCK;
      i32x16 sum = same16(-offset * block_sums[m * blocks + b]);
      for (int j = 0; j < 8; j++)
        sum = bits == 4 ? dot4(sum, weights[j], four + 4 * j) : dot4_wide(sum, weights[j], four + 4 * j);
      sums[m] += __builtin_convertvector(sum, f32x16) * (scale * scales[m * blocks + b]);
    }
  }
  for (int m = 0; m < tokens; m++) result[m] = sums[m];
}

static void write_rows(const f32x16 *sums, int tokens, const float *bias, int rows, int row, float *output) {
  const int count = rows - row < TILE ? rows - row : TILE;
  for (int m = 0; m < tokens; m++, output += rows) {
    if (count == TILE) {
      store16(output + row, bias ? sums[m] + load16(bias + row) : sums[m]);
    } else {
      for (int r = 0; r < count; r++) output[row + r] = sums[m][r] + (bias ? bias[row + r] : 0);
    }
  }
}

INLINE void tiles(const uint8_t *weights, int bits, int blocks, int rows, int first_tile, int last_tile, int tokens,
                  Activations a, const float *bias, float *output) {
  const size_t tile_bytes = blocks * record_bytes(bits);
  f32x16 sums[16];
  for (int m = 0; m < tokens;) {
    const int left = tokens - m, step = left >= 16 ? 16 : left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const int8_t *codes = a.codes + (size_t)m * blocks * BLOCK;
    const float *scales = a.scales + (size_t)m * blocks;
    const int32_t *block_sums = a.sums + (size_t)m * blocks;
    for (int t = first_tile; t < last_tile; t++) {
      const uint8_t *record = weights + t * tile_bytes;
      switch (step) {  // a constant lets the sums stay in registers
        case 16: tile(record, bits, blocks, 16, codes, scales, block_sums, sums); break;
        case 8: tile(record, bits, blocks, 8, codes, scales, block_sums, sums); break;
        case 4: tile(record, bits, blocks, 4, codes, scales, block_sums, sums); break;
        case 2: tile(record, bits, blocks, 2, codes, scales, block_sums, sums); break;
        default: tile(record, bits, blocks, 1, codes, scales, block_sums, sums);
      }
      write_rows(sums, step, bias, rows, t * TILE, output + (size_t)m * rows);
    }
    m += step;
  }
}

void OWN(matmul)(const uint8_t *weights, int bits, int blocks, int rows, int first_tile, int last_tile, int tokens,
                   Activations a, const float *bias, float *output) {
  if (bits == 4)
    tiles(weights, 4, blocks, rows, first_tile, last_tile, tokens, a, bias, output);
  else
    tiles(weights, 8, blocks, rows, first_tile, last_tile, tokens, a, bias, output);
}
