/* Cuts a drawn page into the JPEG tiles of a Deep Zoom pyramid, in one pass over the page.
 *
 * Levels are those of libvips' dzsave: a pixel is the mean of four, (sum + 2) >> 2, and the last row or column counts twice at an odd edge.
 * A white tile is left out; a tile whose pixels all have R = G = B gets one component; every other tile is 4:4:4.
 *
 * The page is read once, tile by tile. The pixels of each tile, without its overlap, are halved into the level below, whose rows lie in a ring
 * that is just large enough for one row of tiles. A row of tiles of that level is cut as soon as its pixels are there. So all levels together
 * need a few megabytes beside the page.
 *
 * JPEG: https://www.w3.org/Graphics/JPEG/itu-t81.pdf, and the colours of https://www.w3.org/Graphics/JPEG/jfif3.pdf. The transform, the
 * conversion of colours and the rounding are those of libjpeg's JDCT_ISLOW. A tile is turned into symbols, and then has the Huffman tables that
 * are best for them: tables and scan equal those of libjpeg-turbo with optimize_coding.
 *
 * Nothing is static but constants, so any number of threads may cut pages.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Static_assert(sizeof(size_t) == 8 && sizeof(off_t) == 8, "sizes are computed with 64 bits");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the numbers in the file are little-endian");

#if defined(__x86_64__) && defined(__GNUC__) && !defined(CUTTER_PORTABLE)
#include <immintrin.h>
#define HAS_AVX2 1
#define AVX2 __attribute__((target("avx2")))
#endif

enum { WHITE, GRAY, COLOUR };

/* The Huffman tables: of DC and AC coefficients, of luminance and chrominance. */
enum { DC, AC, CHROMA_DC, CHROMA_AC };

/* A token is a symbol of the tile in hand: table << 24 | symbol << 16 | the bits that follow its code. The low half of the symbol tells how many
 * bits follow. */
enum { SAME = 255 }; /* in the place of table and symbol: flat blocks of the value of the block before, and how many */

#define MAX_SIDE (1u << 24)
#define MAX_TILE 4096u
#define MAX_LEVELS 25
#define HEADER_BYTES 2048
#define VALUES 4096     /* those of 11 bits, negative ones at the end */
#define BLOCK_TOKENS 64 /* at most */
#define BUFFER_BYTES (1u << 20)
#define SYMBOLS 256
#define WHITE_SIZES (16 * MAX_LEVELS) /* a level has tiles of four widths: the first, the last, the one before, the others */

/* What to cut; cutter.py has the same structure. */
struct page {
    const uint8_t *pixels;
    uint64_t stride; /* bytes from row to row */
    uint32_t width;
    uint32_t height;
    uint32_t blue_first; /* whether a pixel is B, G, R */
    uint32_t tile;       /* even */
    uint32_t overlap;
    uint32_t preview_level;
    uint8_t *preview;          /* receives the pixels of that level, R, G, B without padding */
    const uint8_t *quantizers; /* of luminance and chrominance, 64 bytes each, row by row */
    uint64_t limit;            /* the most bytes that may be written */
    int32_t file;              /* open for reading and writing, empty */
};

/* The end of the file: the entries of tiles, those of white tiles, then this; all numbers little-endian. */
struct trailer {
    uint64_t offset; /* of the first entry */
    uint32_t tiles, whites;
    char magic[8];
};

struct entry {
    uint32_t level, column, row, size; /* of a white tile: its width and height in the place of column and row */
    uint64_t offset;
};

struct code {
    uint16_t bits;
    uint16_t size;
};

/* The Huffman tables of a JPEG. */
struct tables {
    uint8_t bytes[4][16 + SYMBOLS]; /* how many codes have each length from 1 to 16, then the symbols */
    uint32_t symbols[4];
    struct code codes[4 * SYMBOLS]; /* by table and symbol */
};

struct quantizer {
    uint16_t reciprocal[64], round[64], scale[64];
    int16_t flat[256]; /* the quantized DC of a block of one value */
    uint16_t divisor[64];
};

struct level {
    uint32_t width, height, columns, rows;
    uint32_t ready; /* rows of pixels that are there */
    uint32_t next;  /* the row of tiles to cut next */
    uint32_t ring;  /* rows of pixels that are kept */
    uint32_t cells_across;
    size_t stride;
    uint8_t *plane[3];
    uint8_t *cells; /* of each tile of the level above, whether its part of this level is white, gray or coloured */
};

/* How the functions are done that take nearly all of the time. */
struct kernels {
    int (*is_white)(const uint8_t *row, uint32_t pixels);
    int (*green)(const uint8_t *row, uint32_t pixels, uint8_t *green); /* returns whether a pixel has a colour */
    void (*planes)(const uint8_t *row, uint32_t pixels, uint8_t *first, uint8_t *green, uint8_t *last);
    void (*halve)(const uint8_t *one, const uint8_t *other, uint32_t pixels, uint8_t *half);
    void (*convert)(const uint8_t *red, const uint8_t *green, const uint8_t *blue, size_t stride, int16_t *samples, size_t apart);
    void (*transform)(const struct quantizer *, const int16_t *one, const int16_t *other, int16_t *one_out, int16_t *other_out);
};

struct cutter {
    struct page page;
    struct kernels kernels;
    struct level levels[MAX_LEVELS];
    uint32_t top;
    uint8_t *plane[3]; /* the tile in hand: R, G, B, padded by its last column and row */
    size_t stride;
    int16_t *samples; /* of a row of blocks, of each component */
    int16_t *blocks;  /* their coefficients */
    struct quantizer quantizers[2];
    struct tables tables;
    uint32_t *tokens;
    size_t token_room;            /* bytes */
    uint32_t counts[4 * SYMBOLS]; /* how often each symbol occurs in the tile in hand, by table and symbol */
    uint32_t values[VALUES];      /* of each value: how many bits it has << 16 | its bits */
    uint64_t zigzag[8][256];      /* the places in zigzag order of the coefficients of a row that are not 0 */
    uint8_t *jpeg;
    size_t jpeg_room;
    uint8_t *buffer;
    size_t buffered;
    uint64_t written;
    struct entry *entries;
    uint64_t *hashes;
    size_t count, room;
    uint32_t *places; /* 1 + an index of entries, one of each hash */
    size_t place_mask;
    struct entry whites[WHITE_SIZES];
    uint32_t white_count;
};

static const uint8_t ZIGZAG[64] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

/* ---- Pixels ---- */

static int is_white_portable(const uint8_t *row, uint32_t pixels) {
    for (size_t i = 0; i < 3 * (size_t)pixels; i++)
        if (row[i] != 255) return 0;
    return 1;
}

static int green_portable(const uint8_t *row, uint32_t pixels, uint8_t *green) {
    uint8_t different = 0;
    for (uint32_t i = 0; i < pixels; i++, row += 3) {
        different |= (row[0] ^ row[1]) | (row[1] ^ row[2]);
        green[i] = row[1];
    }
    return different != 0;
}

static void planes_portable(const uint8_t *row, uint32_t pixels, uint8_t *first, uint8_t *green, uint8_t *last) {
    for (uint32_t i = 0; i < pixels; i++, row += 3) {
        first[i] = row[0];
        green[i] = row[1];
        last[i] = row[2];
    }
}

static void halve_portable(const uint8_t *one, const uint8_t *other, uint32_t pixels, uint8_t *half) {
    for (uint32_t i = 0; i < pixels; i++) half[i] = (uint8_t)((one[2 * i] + one[2 * i + 1] + other[2 * i] + other[2 * i + 1] + 2) >> 2);
}

/* The conversion of JFIF with 16 bits after the point, 128 subtracted. */
#define LUMA(r, g, b) (((19595 * (r) + 38470 * (g) + 7471 * (b) + 32768) >> 16) - 128)
#define BLUE(r, g, b) ((-11059 * (r)-21709 * (g) + 32768 * (b) + 32767) >> 16)
#define RED(r, g, b) ((32768 * (r)-27439 * (g)-5329 * (b) + 32767) >> 16)

static void convert_portable(const uint8_t *red, const uint8_t *green, const uint8_t *blue, size_t stride, int16_t *samples, size_t apart) {
    for (int row = 0; row < 8; row++, red += stride, green += stride, blue += stride)
        for (int i = 0; i < 8; i++, samples++) {
            int32_t r = red[i], g = green[i], b = blue[i];
            samples[0] = (int16_t)LUMA(r, g, b);
            samples[apart] = (int16_t)BLUE(r, g, b);
            samples[2 * apart] = (int16_t)RED(r, g, b);
        }
}

/* ---- Transform: that of Loeffler, Ligtenberg and Moschytz, in integers with 13 bits after the point ---- */

#define C0_298 2446
#define C0_390 3196
#define C0_541 4433
#define C0_765 6270
#define C0_899 7373
#define C1_175 9633
#define C1_501 12299
#define C1_847 15137
#define C1_961 16069
#define C2_053 16819
#define C2_562 20995
#define C3_072 25172

static void transform_line(const int32_t *in, int step, int32_t *out, int pass) {
    int32_t sum[4], diff[4];
    for (int i = 0; i < 4; i++) {
        sum[i] = in[i * step] + in[(7 - i) * step];
        diff[i] = in[i * step] - in[(7 - i) * step];
    }
    int32_t even = sum[0] + sum[3], odd = sum[1] + sum[2], outer = sum[0] - sum[3], inner = sum[1] - sum[2];
    int shift = pass == 1 ? 11 : 15;
    int32_t half = 1 << (shift - 1);
    out[0] = pass == 1 ? (even + odd) * 4 : (even + odd + 2) >> 2;
    out[4 * step] = pass == 1 ? (even - odd) * 4 : (even - odd + 2) >> 2;
    out[2 * step] = (outer * (C0_541 + C0_765) + inner * C0_541 + half) >> shift;
    out[6 * step] = (outer * C0_541 + inner * (C0_541 - C1_847) + half) >> shift;
    int32_t p = diff[3] + diff[1], q = diff[2] + diff[0];
    int32_t z3 = p * (C1_175 - C1_961) + q * C1_175, z4 = p * C1_175 + q * (C1_175 - C0_390);
    out[7 * step] = (diff[3] * (C0_298 - C0_899) - diff[0] * C0_899 + z3 + half) >> shift;
    out[5 * step] = (diff[2] * (C2_053 - C2_562) - diff[1] * C2_562 + z4 + half) >> shift;
    out[3 * step] = (diff[1] * (C3_072 - C2_562) - diff[2] * C2_562 + z3 + half) >> shift;
    out[1 * step] = (diff[0] * (C1_501 - C0_899) - diff[3] * C0_899 + z4 + half) >> shift;
}

static int16_t quantize(int32_t value, int32_t divisor) {
    return (int16_t)(value < 0 ? -((-value + divisor / 2) / divisor) : (value + divisor / 2) / divisor);
}

static void transform_portable(const struct quantizer *q, const int16_t *one, const int16_t *other, int16_t *one_out, int16_t *other_out) {
    for (int which = 0; which < 2; which++) {
        const int16_t *in = which ? other : one;
        int16_t *out = which ? other_out : one_out;
        int32_t line[64];
        for (int i = 0; i < 64; i++) line[i] = in[i];
        for (int row = 0; row < 8; row++) transform_line(line + 8 * row, 1, line + 8 * row, 1);
        for (int column = 0; column < 8; column++) transform_line(line + column, 8, line + column, 2);
        for (int i = 0; i < 64; i++) out[i] = quantize(line[i], q->divisor[i]);
    }
}

#ifdef HAS_AVX2

AVX2 static int is_white_avx2(const uint8_t *row, uint32_t pixels) {
    size_t bytes = 3 * (size_t)pixels, i = 0;
    const __m256i white = _mm256_set1_epi8(-1);
    for (; i + 128 <= bytes; i += 128) {
        const __m256i *from = (const __m256i *)(row + i);
        __m256i all = _mm256_and_si256(_mm256_and_si256(_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)),
                                       _mm256_and_si256(_mm256_loadu_si256(from + 2), _mm256_loadu_si256(from + 3)));
        if (!_mm256_testc_si256(all, white)) return 0;
    }
    for (; i < bytes; i++)
        if (row[i] != 255) return 0;
    return 1;
}

#define PAIR(a, b) _mm256_set1_epi32((int32_t)((uint32_t)(uint16_t)(a) | (uint32_t)(uint16_t)(b) << 16))

#define GATHER(channel, part)                                                                                                       \
    _mm_setr_epi8(PICK(channel, part, 0), PICK(channel, part, 1), PICK(channel, part, 2), PICK(channel, part, 3),                   \
                  PICK(channel, part, 4), PICK(channel, part, 5), PICK(channel, part, 6), PICK(channel, part, 7),                   \
                  PICK(channel, part, 8), PICK(channel, part, 9), PICK(channel, part, 10), PICK(channel, part, 11),                 \
                  PICK(channel, part, 12), PICK(channel, part, 13), PICK(channel, part, 14), PICK(channel, part, 15))
#define PICK(channel, part, i) ((3 * (i) + (channel)) / 16 == (part) ? (3 * (i) + (channel)) % 16 : -128)

#define CHANNEL(a, b, c, channel)                                                                                                   \
    _mm_or_si128(_mm_or_si128(_mm_shuffle_epi8(a, GATHER(channel, 0)), _mm_shuffle_epi8(b, GATHER(channel, 1))),                     \
                 _mm_shuffle_epi8(c, GATHER(channel, 2)))

AVX2 static int green_avx2(const uint8_t *row, uint32_t pixels, uint8_t *green) {
    __m128i different = _mm_setzero_si128();
    uint32_t i = 0;
    /* A byte differs from the next one within its pixel. */
    const __m128i m0 = _mm_setr_epi8(-1, -1, 0, -1, -1, 0, -1, -1, 0, -1, -1, 0, -1, -1, 0, -1);
    const __m128i m1 = _mm_setr_epi8(-1, 0, -1, -1, 0, -1, -1, 0, -1, -1, 0, -1, -1, 0, -1, -1);
    const __m128i m2 = _mm_setr_epi8(0, -1, -1, 0, -1, -1, 0, -1, -1, 0, -1, -1, 0, -1, -1, 0);
    for (; i + 17 <= pixels; i += 16) {
        const __m128i *from = (const __m128i *)(row + 3 * (size_t)i), *next = (const __m128i *)(row + 3 * (size_t)i + 1);
        __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1), c = _mm_loadu_si128(from + 2);
        different = _mm_or_si128(different, _mm_and_si128(m0, _mm_xor_si128(a, _mm_loadu_si128(next))));
        different = _mm_or_si128(different, _mm_and_si128(m1, _mm_xor_si128(b, _mm_loadu_si128(next + 1))));
        different = _mm_or_si128(different, _mm_and_si128(m2, _mm_xor_si128(c, _mm_loadu_si128(next + 2))));
        _mm_storeu_si128((__m128i *)(green + i), CHANNEL(a, b, c, 1));
    }
    int rest = green_portable(row + 3 * (size_t)i, pixels - i, green + i);
    return rest || !_mm_testz_si128(different, different);
}

AVX2 static void planes_avx2(const uint8_t *row, uint32_t pixels, uint8_t *first, uint8_t *green, uint8_t *last) {
    uint32_t i = 0;
    for (; i + 16 <= pixels; i += 16) {
        const __m128i *from = (const __m128i *)(row + 3 * (size_t)i);
        __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1), c = _mm_loadu_si128(from + 2);
        _mm_storeu_si128((__m128i *)(first + i), CHANNEL(a, b, c, 0));
        _mm_storeu_si128((__m128i *)(green + i), CHANNEL(a, b, c, 1));
        _mm_storeu_si128((__m128i *)(last + i), CHANNEL(a, b, c, 2));
    }
    planes_portable(row + 3 * (size_t)i, pixels - i, first + i, green + i, last + i);
}

AVX2 static void halve_avx2(const uint8_t *one, const uint8_t *other, uint32_t pixels, uint8_t *half) {
    const __m256i ones = _mm256_set1_epi8(1), two = _mm256_set1_epi16(2);
    uint32_t i = 0;
    for (; i + 16 <= pixels; i += 16) {
        __m256i a = _mm256_maddubs_epi16(_mm256_loadu_si256((const __m256i *)(one + 2 * i)), ones);
        __m256i b = _mm256_maddubs_epi16(_mm256_loadu_si256((const __m256i *)(other + 2 * i)), ones);
        __m256i mean = _mm256_srli_epi16(_mm256_add_epi16(_mm256_add_epi16(a, b), two), 2);
        __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(mean, mean), 0x08);
        _mm_storeu_si128((__m128i *)(half + i), _mm256_castsi256_si128(packed));
    }
    halve_portable(one + 2 * i, other + 2 * i, pixels - i, half + i);
}

AVX2 static void convert_avx2(const uint8_t *red, const uint8_t *green, const uint8_t *blue, size_t stride, int16_t *samples, size_t apart) {
    const __m256i offset = _mm256_set1_epi32(32768 - (128 << 16)), below_half = _mm256_set1_epi32(32767);
    for (int row = 0; row < 8; row++, red += stride, green += stride, blue += stride, samples += 8) {
        __m128i r = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)red)), g = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)green));
        __m128i b = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)blue));
        __m256i rg = _mm256_set_m128i(_mm_unpackhi_epi16(r, g), _mm_unpacklo_epi16(r, g));
        __m256i gb = _mm256_set_m128i(_mm_unpackhi_epi16(g, b), _mm_unpacklo_epi16(g, b));
        __m256i rb = _mm256_set_m128i(_mm_unpackhi_epi16(r, b), _mm_unpacklo_epi16(r, b));
        /* Factors of 16 bits are less than 32768: 38470 is 22086 + 16384, and 32768 is 16384 twice. */
        __m256i y = _mm256_add_epi32(_mm256_madd_epi16(rg, PAIR(19595, 22086)), _mm256_madd_epi16(gb, PAIR(16384, 7471)));
        __m256i cb = _mm256_add_epi32(_mm256_madd_epi16(rg, PAIR(-11059, -21709)), _mm256_slli_epi32(_mm256_madd_epi16(gb, PAIR(0, 16384)), 1));
        __m256i cr = _mm256_add_epi32(_mm256_madd_epi16(gb, PAIR(-27439, -5329)), _mm256_slli_epi32(_mm256_madd_epi16(rb, PAIR(16384, 0)), 1));
        const __m256i parts[3] = {_mm256_add_epi32(y, offset), _mm256_add_epi32(cb, below_half), _mm256_add_epi32(cr, below_half)};
        for (int k = 0; k < 3; k++) {
            __m256i words = _mm256_srai_epi32(parts[k], 16);
            _mm_storeu_si128((__m128i *)(samples + k * apart), _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
        }
    }
}

/* Two blocks at once: one in the lower halves of the registers, the other in the upper halves. */
AVX2 static inline void transpose(__m256i *r) {
    __m256i a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        b[4 * i] = _mm256_unpacklo_epi32(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi32(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi32(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi32(a[4 * i + 1], a[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        r[2 * i] = _mm256_unpacklo_epi64(b[i], b[i + 4]);
        r[2 * i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 4]);
    }
}

AVX2 static inline __m256i rounded(__m256i lo, __m256i hi, int shift) {
    const __m256i half = _mm256_set1_epi32(1 << (shift - 1));
    return _mm256_packs_epi32(_mm256_srai_epi32(_mm256_add_epi32(lo, half), shift), _mm256_srai_epi32(_mm256_add_epi32(hi, half), shift));
}

AVX2 static inline void transform_lines(__m256i *r, int pass) {
    __m256i sum[4], diff[4];
    for (int i = 0; i < 4; i++) {
        sum[i] = _mm256_add_epi16(r[i], r[7 - i]);
        diff[i] = _mm256_sub_epi16(r[i], r[7 - i]);
    }
    __m256i even = _mm256_add_epi16(sum[0], sum[3]), odd = _mm256_add_epi16(sum[1], sum[2]);
    __m256i outer = _mm256_sub_epi16(sum[0], sum[3]), inner = _mm256_sub_epi16(sum[1], sum[2]);
    const int shift = pass == 1 ? 11 : 15;
    __m256i first = _mm256_add_epi16(even, odd), fifth = _mm256_sub_epi16(even, odd);
    if (pass == 1) {
        r[0] = _mm256_slli_epi16(first, 2);
        r[4] = _mm256_slli_epi16(fifth, 2);
    } else {
        const __m256i two = _mm256_set1_epi16(2);
        r[0] = _mm256_srai_epi16(_mm256_add_epi16(first, two), 2);
        r[4] = _mm256_srai_epi16(_mm256_add_epi16(fifth, two), 2);
    }
    __m256i lo = _mm256_unpacklo_epi16(outer, inner), hi = _mm256_unpackhi_epi16(outer, inner);
    r[2] = rounded(_mm256_madd_epi16(lo, PAIR(C0_541 + C0_765, C0_541)), _mm256_madd_epi16(hi, PAIR(C0_541 + C0_765, C0_541)), shift);
    r[6] = rounded(_mm256_madd_epi16(lo, PAIR(C0_541, C0_541 - C1_847)), _mm256_madd_epi16(hi, PAIR(C0_541, C0_541 - C1_847)), shift);
    __m256i p = _mm256_add_epi16(diff[3], diff[1]), q = _mm256_add_epi16(diff[2], diff[0]);
    lo = _mm256_unpacklo_epi16(p, q), hi = _mm256_unpackhi_epi16(p, q);
    const __m256i c3 = PAIR(C1_175 - C1_961, C1_175), c4 = PAIR(C1_175, C1_175 - C0_390);
    __m256i z3_lo = _mm256_madd_epi16(lo, c3), z3_hi = _mm256_madd_epi16(hi, c3);
    __m256i z4_lo = _mm256_madd_epi16(lo, c4), z4_hi = _mm256_madd_epi16(hi, c4);
    lo = _mm256_unpacklo_epi16(diff[3], diff[0]), hi = _mm256_unpackhi_epi16(diff[3], diff[0]);
    const __m256i c7 = PAIR(C0_298 - C0_899, -C0_899), c1 = PAIR(-C0_899, C1_501 - C0_899);
    r[7] = rounded(_mm256_add_epi32(_mm256_madd_epi16(lo, c7), z3_lo), _mm256_add_epi32(_mm256_madd_epi16(hi, c7), z3_hi), shift);
    r[1] = rounded(_mm256_add_epi32(_mm256_madd_epi16(lo, c1), z4_lo), _mm256_add_epi32(_mm256_madd_epi16(hi, c1), z4_hi), shift);
    lo = _mm256_unpacklo_epi16(diff[2], diff[1]), hi = _mm256_unpackhi_epi16(diff[2], diff[1]);
    const __m256i c5 = PAIR(C2_053 - C2_562, -C2_562), c2 = PAIR(-C2_562, C3_072 - C2_562);
    r[5] = rounded(_mm256_add_epi32(_mm256_madd_epi16(lo, c5), z4_lo), _mm256_add_epi32(_mm256_madd_epi16(hi, c5), z4_hi), shift);
    r[3] = rounded(_mm256_add_epi32(_mm256_madd_epi16(lo, c2), z3_lo), _mm256_add_epi32(_mm256_madd_epi16(hi, c2), z3_hi), shift);
}

AVX2 static void transform_avx2(const struct quantizer *q, const int16_t *one, const int16_t *other, int16_t *one_out, int16_t *other_out) {
    __m256i r[8];
    for (int i = 0; i < 8; i++)
        r[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(one + 8 * i))),
                                       _mm_loadu_si128((const __m128i *)(other + 8 * i)), 1);
    transpose(r);
    transform_lines(r, 1);
    transpose(r);
    transform_lines(r, 2);
    for (int i = 0; i < 8; i++) {
        const __m256i round = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(q->round + 8 * i)));
        const __m256i reciprocal = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(q->reciprocal + 8 * i)));
        const __m256i scale = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(q->scale + 8 * i)));
        __m256i value = _mm256_add_epi16(_mm256_abs_epi16(r[i]), round);
        value = _mm256_sign_epi16(_mm256_mulhi_epu16(_mm256_mulhi_epu16(value, reciprocal), scale), r[i]);
        _mm_storeu_si128((__m128i *)(one_out + 8 * i), _mm256_castsi256_si128(value));
        _mm_storeu_si128((__m128i *)(other_out + 8 * i), _mm256_extracti128_si256(value, 1));
    }
}

#endif

static struct kernels choose_kernels(void) {
#ifdef HAS_AVX2
    if (__builtin_cpu_supports("avx2")) return (struct kernels){is_white_avx2, green_avx2, planes_avx2, halve_avx2, convert_avx2, transform_avx2};
#endif
    return (struct kernels){is_white_portable, green_portable, planes_portable, halve_portable, convert_portable, transform_portable};
}

/* ---- Tables ---- */

/* Makes the table with the fewest bits for symbols that occur so often: https://www.w3.org/Graphics/JPEG/itu-t81.pdf, K.2. */
static void make_table(struct tables *t, uint32_t which, const uint32_t *counts) {
    struct {
        uint32_t count, node;
    } tree[SYMBOLS + 1]; /* the trees that are not joined yet */
    uint8_t symbols[SYMBOLS], *table = t->bytes[which], *out = table + 16;
    uint32_t parent[2 * SYMBOLS + 1], depth[2 * SYMBOLS + 1], lengths[SYMBOLS + 1] = {0}, number = 0;
    for (uint32_t symbol = 0; symbol < SYMBOLS; symbol++)
        if (counts[symbol]) {
            tree[number].count = counts[symbol];
            tree[number].node = number;
            symbols[number++] = (uint8_t)symbol;
        }
    tree[number].count = 1; /* one symbol more, to which the code of ones only falls: it is not allowed */
    tree[number].node = number;
    uint32_t node = number + 1;
    for (uint32_t left = node; left > 1; left--, node++) {
        uint32_t least = 0, second = 0, least_count = UINT32_MAX, second_count = UINT32_MAX;
        for (uint32_t i = 0; i < left; i++) /* of equal ones the last, as libjpeg does it */
            if (tree[i].count <= least_count) {
                second = least;
                second_count = least_count;
                least = i;
                least_count = tree[i].count;
            } else if (tree[i].count <= second_count) {
                second = i;
                second_count = tree[i].count;
            }
        parent[tree[least].node] = parent[tree[second].node] = node;
        tree[least].count += second_count;
        tree[least].node = node;
        memmove(tree + second, tree + second + 1, (left - second - 1) * sizeof *tree);
    }
    depth[--node] = 0;
    while (node-- > 0) depth[node] = depth[parent[node]] + 1;
    for (uint32_t i = 0; i <= number; i++) lengths[depth[i]]++;
    for (uint32_t length = 1; out < table + 16 + number; length++)
        for (uint32_t i = 0; i < number; i++)
            if (depth[i] == length) *out++ = symbols[i];
    for (uint32_t length = SYMBOLS; length > 16; length--) /* figure K.3 */
        while (lengths[length]) {
            uint32_t shorter = length - 2;
            while (!lengths[shorter]) shorter--;
            lengths[length] -= 2;
            lengths[length - 1]++;
            lengths[shorter + 1] += 2;
            lengths[shorter]--;
        }
    uint32_t longest = 16, code = 0, at = 16;
    while (!lengths[longest]) longest--;
    lengths[longest]--;
    for (uint32_t length = 1; length <= 16; length++, code <<= 1) {
        table[length - 1] = (uint8_t)lengths[length];
        for (uint32_t i = 0; i < lengths[length]; i++)
            t->codes[SYMBOLS * which + table[at++]] = (struct code){(uint16_t)code++, (uint16_t)length};
    }
    t->symbols[which] = number;
}

/* Prepares the division by each divisor as two multiplications: https://gmplib.org/~tege/divcnst-pldi94.pdf. */
static int read_quantizer(const uint8_t *table, struct quantizer *q) {
    for (int i = 0; i < 64; i++) {
        if (!table[i]) return -EINVAL;
        uint32_t divisor = 8u * table[i], bits = 31 - (uint32_t)__builtin_clz(divisor), half = divisor / 2;
        uint32_t reciprocal = (1u << (16 + bits)) / divisor, rest = (1u << (16 + bits)) % divisor;
        if (rest == 0) {
            reciprocal >>= 1;
            bits--;
        } else if (rest <= divisor / 2) {
            half++;
        } else {
            reciprocal++;
        }
        q->divisor[i] = (uint16_t)divisor;
        q->round[i] = (uint16_t)half;
        q->reciprocal[i] = (uint16_t)reciprocal;
        q->scale[i] = (uint16_t)(1u << (16 - bits));
    }
    for (int value = 0; value < 256; value++) q->flat[value] = quantize(64 * (value - 128), q->divisor[0]);
    return 0;
}

/* ---- JPEG ---- */

struct bits {
    uint8_t *out;
    uint64_t word;
    uint32_t free; /* bits of the word */
};

static inline void put_word(struct bits *b) {
    uint64_t word = b->word;
    if (word & 0x8080808080808080u & ~(word + 0x0101010101010101u)) { /* there may be a byte 0xff */
        for (int shift = 56; shift >= 0; shift -= 8) {
            uint8_t byte = (uint8_t)(word >> shift);
            *b->out++ = byte;
            if (byte == 0xff) *b->out++ = 0;
        }
    } else {
        word = __builtin_bswap64(word);
        memcpy(b->out, &word, 8);
        b->out += 8;
    }
}

/* At most 63 bits; those above size are 0. */
static inline void put(struct bits *b, uint64_t bits, uint32_t size) {
    if (size < b->free) {
        b->free -= size;
        b->word |= bits << b->free;
        return;
    }
    uint32_t rest = size - b->free;
    b->word |= bits >> rest;
    put_word(b);
    b->free = 64 - rest;
    b->word = rest ? bits << b->free : 0;
}

/* Adds a symbol of a table, which says how many zeros come before a value, and the value. */
static inline uint32_t *add(uint32_t *token, struct cutter *c, uint32_t table, uint32_t zeros, int32_t value) {
    *token = table << 24 | zeros << 20 | c->values[value & (VALUES - 1)];
    c->counts[*token >> 16]++;
    return token + 1;
}

/* Adds flat blocks of the value of the block before, which have no difference and no coefficients. */
static inline uint32_t *add_same(uint32_t *token, struct cutter *c, uint32_t *number, int is_colour) {
    if (!*number) return token;
    c->counts[SYMBOLS * DC] += *number;
    c->counts[SYMBOLS * AC] += *number;
    if (is_colour) {
        c->counts[SYMBOLS * CHROMA_DC] += 2 * *number;
        c->counts[SYMBOLS * CHROMA_AC] += 2 * *number;
    }
    *token = SAME << 16 | *number;
    *number = 0;
    return token + 1;
}

static inline uint64_t places_of(const struct cutter *c, const int16_t *block) {
    uint64_t places = 0;
    for (int row = 0; row < 8; row++) {
        uint32_t used = 0;
#ifdef HAS_AVX2
        __m128i zero = _mm_cmpeq_epi16(_mm_loadu_si128((const __m128i *)(block + 8 * row)), _mm_setzero_si128());
        used = 0xff & ~(uint32_t)_mm_movemask_epi8(_mm_packs_epi16(zero, zero));
#else
        for (int i = 0; i < 8; i++) used |= (uint32_t)(block[8 * row + i] != 0) << i;
#endif
        places |= c->zigzag[row][used];
    }
    return places;
}

static inline uint32_t *add_block(uint32_t *token, struct cutter *c, const int16_t *block, uint32_t dc, int32_t *previous) {
    uint32_t ac = dc + 1, last = 0;
    token = add(token, c, dc, 0, block[0] - *previous);
    *previous = block[0];
    uint64_t places = places_of(c, block) & ~(uint64_t)1;
    while (places) {
        uint32_t place = (uint32_t)__builtin_ctzll(places), zeros = place - last - 1;
        places &= places - 1;
        last = place;
        for (; zeros > 15; zeros -= 16) token = add(token, c, ac, 15, 0);
        token = add(token, c, ac, zeros, block[ZIGZAG[place]]);
    }
    return last == 63 ? token : add(token, c, ac, 0, 0);
}

static inline int is_flat(const uint8_t *block, size_t stride) {
    uint64_t value = 0x0101010101010101u * block[0], different = 0, line;
    for (int row = 0; row < 8; row++) {
        memcpy(&line, block + (size_t)row * stride, 8);
        different |= line ^ value;
    }
    return different == 0;
}

static inline void copy_block(const uint8_t *from, size_t stride, int16_t *samples) {
    for (int row = 0; row < 8; row++)
        for (int i = 0; i < 8; i++) samples[8 * row + i] = (int16_t)(from[(size_t)row * stride + (size_t)i] - 128);
}

/* Transforms the blocks of a list, two at once. */
static void transform_list(const struct cutter *c, const struct quantizer *q, const int16_t *samples, int16_t *blocks, const uint32_t *list,
                           uint32_t count) {
    for (uint32_t i = 0; i < count; i += 2) {
        size_t one = 64 * (size_t)list[i], other = 64 * (size_t)list[i + 1 < count ? i + 1 : i];
        c->kernels.transform(q, samples + one, samples + other, blocks + one, blocks + other);
    }
}

static uint32_t *add_gray_row(uint32_t *token, struct cutter *c, const uint8_t *line, uint32_t across, uint32_t *list, int32_t *previous) {
    uint32_t count = 0, next = 0, same = 0;
    for (uint32_t i = 0; i < across; i++)
        if (!is_flat(line + 8 * (size_t)i, c->stride)) {
            copy_block(line + 8 * (size_t)i, c->stride, c->samples + 64 * (size_t)i);
            list[count++] = i;
        }
    transform_list(c, &c->quantizers[0], c->samples, c->blocks, list, count);
    for (uint32_t i = 0; i < across; i++) {
        int is_listed = next < count && list[next] == i;
        int32_t dc = is_listed ? 0 : c->quantizers[0].flat[line[8 * (size_t)i]];
        if (!is_listed && dc == previous[0]) {
            same++;
            continue;
        }
        token = add_same(token, c, &same, 0);
        if (is_listed) {
            next++;
            token = add_block(token, c, c->blocks + 64 * (size_t)i, DC, &previous[0]);
            continue;
        }
        token = add(token, c, DC, 0, dc - previous[0]);
        token = add(token, c, AC, 0, 0);
        previous[0] = dc;
    }
    return add_same(token, c, &same, 0);
}

static uint32_t *add_colour_row(uint32_t *token, struct cutter *c, size_t at, uint32_t across, uint32_t *list, int32_t *previous) {
    uint32_t count = 0, next = 0, same = 0;
    size_t apart = 64 * (size_t)across;
    for (uint32_t i = 0; i < across; i++) {
        size_t block = at + 8 * (size_t)i;
        if (is_flat(c->plane[0] + block, c->stride) && is_flat(c->plane[1] + block, c->stride) && is_flat(c->plane[2] + block, c->stride))
            continue;
        int16_t *samples = c->samples + 64 * (size_t)i;
        c->kernels.convert(c->plane[0] + block, c->plane[1] + block, c->plane[2] + block, c->stride, samples, apart);
        list[count++] = i;
    }
    for (uint32_t k = 0; k < 3; k++) transform_list(c, &c->quantizers[k > 0], c->samples + k * apart, c->blocks + k * apart, list, count);
    for (uint32_t i = 0; i < across; i++) {
        if (next < count && list[next] == i) {
            next++;
            token = add_same(token, c, &same, 1);
            for (uint32_t k = 0; k < 3; k++) token = add_block(token, c, c->blocks + k * apart + 64 * (size_t)i, k ? CHROMA_DC : DC, &previous[k]);
            continue;
        }
        size_t block = at + 8 * (size_t)i;
        int32_t r = c->plane[0][block], g = c->plane[1][block], blue = c->plane[2][block];
        const int32_t dc[3] = {c->quantizers[0].flat[LUMA(r, g, blue) + 128], c->quantizers[1].flat[BLUE(r, g, blue) + 128],
                               c->quantizers[1].flat[RED(r, g, blue) + 128]};
        if (!memcmp(dc, previous, sizeof dc)) {
            same++;
            continue;
        }
        token = add_same(token, c, &same, 1);
        for (uint32_t k = 0; k < 3; k++) {
            token = add(token, c, k ? CHROMA_DC : DC, 0, dc[k] - previous[k]);
            token = add(token, c, k ? CHROMA_AC : AC, 0, 0);
            previous[k] = dc[k];
        }
    }
    return add_same(token, c, &same, 1);
}

static uint8_t *put_bytes(uint8_t *out, const void *bytes, size_t size) {
    memcpy(out, bytes, size);
    return out + size;
}

static uint8_t *put_head(const struct cutter *c, uint8_t *out, uint32_t width, uint32_t height, int components) {
    static const uint8_t START[] = {0xff, 0xd8, 0xff, 0xe0, 0, 16, 'J', 'F', 'I', 'F', 0, 1, 1, 0, 0, 1, 0, 1, 0, 0};
    out = put_bytes(out, START, sizeof START);
    int tables = components == 1 ? 1 : 2;
    for (int i = 0; i < tables; i++) {
        const uint8_t segment[] = {0xff, 0xdb, 0, 67, (uint8_t)i};
        out = put_bytes(out, segment, sizeof segment);
        for (int k = 0; k < 64; k++) *out++ = c->page.quantizers[64 * i + ZIGZAG[k]];
    }
    const uint8_t frame[] = {0xff, 0xc0, 0, (uint8_t)(8 + 3 * components), 8, (uint8_t)(height >> 8), (uint8_t)height, (uint8_t)(width >> 8),
                             (uint8_t)width, (uint8_t)components};
    out = put_bytes(out, frame, sizeof frame);
    for (int i = 0; i < components; i++) {
        const uint8_t component[] = {(uint8_t)(i + 1), 0x11, i > 0};
        out = put_bytes(out, component, sizeof component);
    }
    for (int i = 0; i < 2 * tables; i++) {
        uint32_t size = 16 + c->tables.symbols[i];
        const uint8_t segment[] = {0xff, 0xc4, (uint8_t)((size + 3) >> 8), (uint8_t)(size + 3), (uint8_t)(i % 2 << 4 | i / 2)};
        out = put_bytes(out, segment, sizeof segment);
        out = put_bytes(out, c->tables.bytes[i], size);
    }
    const uint8_t scan[] = {0xff, 0xda, 0, (uint8_t)(6 + 2 * components), (uint8_t)components};
    out = put_bytes(out, scan, sizeof scan);
    for (int i = 0; i < components; i++) {
        *out++ = (uint8_t)(i + 1);
        *out++ = i > 0 ? 0x11 : 0;
    }
    static const uint8_t ALL[] = {0, 63, 0};
    return put_bytes(out, ALL, sizeof ALL);
}

/* Memory with room for so many bytes and the bytes that were there, or NULL. */
static void *with_room(void *memory, size_t *room, size_t needed) {
    if (*room >= needed) return memory;
    needed += needed / 2;
    void *larger = realloc(memory, needed);
    if (larger) *room = needed;
    return larger;
}

/* Adds the symbols of the tile in hand; returns how many tokens they are, or a negative error. */
static int64_t add_tile(struct cutter *c, uint32_t width, uint32_t height, int is_colour) {
    uint32_t across = (width + 7) / 8, down = (height + 7) / 8, list[(MAX_TILE + 7) / 8];
    int32_t previous[3] = {0, 0, 0};
    size_t number = 0, of_row = (size_t)across * BLOCK_TOKENS * (is_colour ? 3 : 1);
    memset(c->counts, 0, sizeof c->counts);
    for (uint32_t row = 0; row < down; row++) {
        uint32_t *token = with_room(c->tokens, &c->token_room, (number + of_row) * sizeof *token);
        if (!token) return -ENOMEM;
        c->tokens = token;
        size_t at = 8 * (size_t)row * c->stride;
        token += number;
        token = is_colour ? add_colour_row(token, c, at, across, list, previous)
                          : add_gray_row(token, c, c->plane[1] + at, across, list, previous);
        number = (size_t)(token - c->tokens);
    }
    return (int64_t)number;
}

/* Encodes the tile in hand; returns the bytes in c->jpeg, or a negative error. */
static int64_t encode(struct cutter *c, uint32_t width, uint32_t height, int is_colour) {
    int64_t number = add_tile(c, width, height, is_colour);
    if (number < 0) return number;
    const struct code *codes = c->tables.codes;
    uint32_t tables = is_colour ? 4 : 2;
    size_t size = 0;
    for (uint32_t which = 0; which < tables; which++) {
        make_table(&c->tables, which, c->counts + SYMBOLS * which);
        for (uint32_t place = SYMBOLS * which; place < SYMBOLS * (which + 1); place++)
            size += (size_t)c->counts[place] * (codes[place].size + place % 16);
    }
    uint8_t *jpeg = with_room(c->jpeg, &c->jpeg_room, HEADER_BYTES + size / 4); /* each byte may be followed by a stuffed one */
    if (!jpeg) return -ENOMEM;
    c->jpeg = jpeg;
    struct bits b = {put_head(c, c->jpeg, width, height, is_colour ? 3 : 1), 0, 64};
    for (const uint32_t *token = c->tokens, *end = token + number; token < end; token++) {
        uint32_t place = *token >> 16, follow = place % 16;
        if (place == SAME) {
            for (uint32_t i = *token & 0xffff; i > 0; i--)
                for (uint32_t k = 0; k < (is_colour ? 3 : 1); k++) {
                    const struct code *dc = &codes[SYMBOLS * (k ? CHROMA_DC : DC)], *ac = dc + SYMBOLS;
                    put(&b, (uint64_t)dc->bits << ac->size | ac->bits, dc->size + ac->size);
                }
            continue;
        }
        uint64_t bits = (uint64_t)codes[place].bits << follow | (*token & 0xffff);
        uint32_t length = codes[place].size + follow;
        if (token + 1 < end && token[1] >> 16 != SAME) { /* two at once */
            place = *++token >> 16;
            follow = place % 16;
            bits = (bits << codes[place].size | codes[place].bits) << follow | (*token & 0xffff);
            length += codes[place].size + follow;
        }
        put(&b, bits, length);
    }
    uint32_t bits = 64 - b.free; /* the last byte is filled with ones */
    b.word |= b.free ? (~(uint64_t)0 >> bits) : 0;
    for (uint32_t i = 0; i < (bits + 7) / 8; i++) {
        uint8_t byte = (uint8_t)(b.word >> (56 - 8 * i));
        *b.out++ = byte;
        if (byte == 0xff) *b.out++ = 0;
    }
    *b.out++ = 0xff;
    *b.out++ = 0xd9;
    return b.out - c->jpeg;
}

/* ---- File ---- */

static int flush(struct cutter *c) {
    size_t done = 0;
    while (done < c->buffered) {
        ssize_t wrote = write(c->page.file, c->buffer + done, c->buffered - done);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) return wrote < 0 ? -errno : -EIO;
        done += (size_t)wrote;
    }
    c->buffered = 0;
    return 0;
}

static int append(struct cutter *c, const void *bytes, size_t size) {
    if (size > c->page.limit || c->written > c->page.limit - size) return -EFBIG;
    const uint8_t *from = bytes;
    c->written += size;
    while (size) {
        size_t part = BUFFER_BYTES - c->buffered < size ? BUFFER_BYTES - c->buffered : size;
        memcpy(c->buffer + c->buffered, from, part);
        c->buffered += part;
        from += part;
        size -= part;
        if (c->buffered == BUFFER_BYTES) {
            int error = flush(c);
            if (error) return error;
        }
    }
    return 0;
}

/* Whether the file has these bytes there: 1 or 0, or a negative error. */
static int has_bytes(struct cutter *c, uint64_t offset, const uint8_t *bytes, size_t size) {
    uint64_t flushed = c->written - c->buffered;
    uint8_t part[4096];
    while (size) {
        size_t step;
        if (offset >= flushed) {
            return memcmp(c->buffer + (offset - flushed), bytes, size) == 0;
        }
        step = size < sizeof part ? size : sizeof part;
        if (step > flushed - offset) step = (size_t)(flushed - offset);
        ssize_t got = pread(c->page.file, part, step, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return got < 0 ? -errno : -EIO;
        if (memcmp(part, bytes, (size_t)got)) return 0;
        offset += (uint64_t)got;
        bytes += got;
        size -= (size_t)got;
    }
    return 1;
}

static uint64_t hash_of(const uint8_t *bytes, size_t size) {
    uint64_t hash = size * 0x9e3779b97f4a7c15u, word;
    for (; size >= 8; bytes += 8, size -= 8) {
        memcpy(&word, bytes, 8);
        hash = (hash ^ word) * 0xff51afd7ed558ccdu;
        hash ^= hash >> 32;
    }
    word = 0;
    memcpy(&word, bytes, size);
    hash = (hash ^ word) * 0xff51afd7ed558ccdu;
    return hash ^ hash >> 29;
}

/* Makes room for one more entry, and for the places of twice as many. */
static int grow(struct cutter *c) {
    if (c->count < c->room) return 0;
    size_t room = c->room ? 2 * c->room : 4096;
    if (room > UINT32_MAX / 2) return -EFBIG;
    struct entry *entries = realloc(c->entries, room * sizeof *entries);
    if (!entries) return -ENOMEM;
    c->entries = entries;
    uint64_t *hashes = realloc(c->hashes, room * sizeof *hashes);
    if (!hashes) return -ENOMEM;
    c->hashes = hashes;
    free(c->places);
    c->places = calloc(2 * room, sizeof *c->places);
    if (!c->places) return -ENOMEM;
    c->place_mask = 2 * room - 1;
    c->room = room;
    for (size_t i = 0; i < c->count; i++) {
        size_t place = hashes[i] & c->place_mask;
        while (c->places[place] && hashes[c->places[place] - 1] != hashes[i]) place = (place + 1) & c->place_mask;
        c->places[place] = (uint32_t)i + 1;
    }
    return 0;
}

/* Stores the JPEG in hand, unless the file has it already. */
static int store(struct cutter *c, uint32_t level, uint32_t column, uint32_t row, size_t size) {
    if (c->page.limit - c->written < (c->count + 1) * sizeof *c->entries) return -EFBIG;
    int error = grow(c);
    if (error) return error;
    uint64_t hash = hash_of(c->jpeg, size), offset = c->written;
    size_t place = hash & c->place_mask;
    int is_known = 0;
    for (; c->places[place]; place = (place + 1) & c->place_mask) {
        size_t other = c->places[place] - 1;
        if (c->hashes[other] != hash) continue;
        is_known = c->entries[other].size == size ? has_bytes(c, c->entries[other].offset, c->jpeg, size) : 0;
        if (is_known < 0) return is_known;
        if (is_known) offset = c->entries[other].offset;
        break; /* one comparison is enough: nobody has many different tiles of one hash, except on purpose */
    }
    if (!is_known && (error = append(c, c->jpeg, size))) return error;
    c->entries[c->count] = (struct entry){level, column, row, (uint32_t)size, offset};
    c->hashes[c->count++] = hash;
    if (!is_known) c->places[place] = (uint32_t)c->count;
    return 0;
}

/* Stores a white tile of this size, once. */
static int store_white(struct cutter *c, uint32_t width, uint32_t height) {
    for (uint32_t i = 0; i < c->white_count; i++)
        if (c->whites[i].column == width && c->whites[i].row == height) return 0;
    if (c->white_count == WHITE_SIZES) return -EINVAL;
    for (uint32_t y = 0; y < (height + 8) / 8 * 8; y++) memset(c->plane[1] + y * c->stride, 255, (width + 8) / 8 * 8);
    int64_t size = encode(c, width, height, 0);
    if (size < 0) return (int)size;
    c->whites[c->white_count++] = (struct entry){0, width, height, (uint32_t)size, c->written};
    return append(c, c->jpeg, (size_t)size);
}

/* ---- Levels ---- */

/* Repeats the last column and row of the tile in hand, at least once, up to a multiple of 8. */
static void pad(struct cutter *c, uint32_t width, uint32_t height, int state) {
    uint32_t right = (width + 8) / 8 * 8, bottom = (height + 8) / 8 * 8;
    for (int k = state == GRAY; k < (state == GRAY ? 2 : 3); k++) {
        uint8_t *plane = c->plane[k];
        for (uint32_t y = 0; y < height; y++) memset(plane + y * c->stride + width, plane[y * c->stride + width - 1], right - width);
        for (uint32_t y = height; y < bottom; y++) memcpy(plane + y * c->stride, plane + (height - 1) * c->stride, right);
    }
}

/* Takes a tile from the page; returns whether it is white, gray or coloured. */
static int take_from_page(struct cutter *c, uint32_t left, uint32_t top, uint32_t width, uint32_t height, int has_next) {
    const struct page *page = &c->page;
    const uint8_t *first = page->pixels + top * page->stride + 3 * (size_t)left;
    uint32_t y = 0, white = 0;
    uint8_t *red = c->plane[page->blue_first ? 2 : 0], *blue = c->plane[page->blue_first ? 0 : 2];
    int state = WHITE;
    for (; y < height; y++) {
        const uint8_t *row = first + y * page->stride;
#ifdef __GNUC__
        /* The rows of a tile lie far apart, which no processor foresees: while a tile is cut, the next one is fetched. */
        if (has_next)
            for (size_t i = 0; i < 3 * (size_t)width; i += 64) __builtin_prefetch(row + 3 * (size_t)width + i, 0, 2);
#endif
        if (state == WHITE) {
            if (c->kernels.is_white(row, width)) continue;
            state = GRAY;
            white = y;
        }
        if (state == GRAY) {
            if (!c->kernels.green(row, width, c->plane[1] + y * c->stride)) continue;
            state = COLOUR;
            for (uint32_t before = white; before < y; before++) {
                memcpy(c->plane[0] + before * c->stride, c->plane[1] + before * c->stride, width);
                memcpy(c->plane[2] + before * c->stride, c->plane[1] + before * c->stride, width);
            }
        }
        c->kernels.planes(row, width, red + y * c->stride, c->plane[1] + y * c->stride, blue + y * c->stride);
    }
    if (state == WHITE) return WHITE;
    for (int k = state == GRAY; k < (state == GRAY ? 2 : 3); k++)
        for (y = 0; y < white; y++) memset(c->plane[k] + y * c->stride, 255, width);
    return state;
}

/* Takes a tile from a lower level. */
static int take_from_level(struct cutter *c, const struct level *level, uint32_t left, uint32_t top, uint32_t width, uint32_t height) {
    uint32_t half = c->page.tile / 2;
    int state = WHITE;
    for (uint32_t i = top / half; i <= (top + height - 1) / half; i++)
        for (uint32_t j = left / half; j <= (left + width - 1) / half; j++) {
            int cell = level->cells[(size_t)i * level->cells_across + j];
            if (cell > state) state = cell;
        }
    if (state == WHITE) return WHITE;
    int is_white = 1, is_gray = 1;
    for (uint32_t y = top; y < top + height; y++) {
        const uint8_t *cells = level->cells + (size_t)(y / half) * level->cells_across;
        size_t to = (y - top) * c->stride;
        for (uint32_t x = left; x < left + width;) {
            uint32_t end = (x / half + 1) * half;
            if (end > left + width) end = left + width;
            int cell = cells[x / half];
            for (int k = state == GRAY; k < (state == GRAY ? 2 : 3); k++) {
                uint8_t *out = c->plane[k] + to + (x - left);
                if (cell == WHITE)
                    memset(out, 255, end - x);
                else
                    memcpy(out, level->plane[cell == GRAY ? 1 : k] + (y % level->ring) * level->stride + x, end - x);
            }
            x = end;
        }
        const uint8_t *green = c->plane[1] + to;
        for (uint32_t i = 0; is_white && i < width; i++) is_white = green[i] == 255;
        if (state == COLOUR && (memcmp(c->plane[0] + to, green, width) || memcmp(c->plane[2] + to, green, width))) is_white = is_gray = 0;
    }
    if (is_white) return WHITE;
    return state == COLOUR && !is_gray ? COLOUR : GRAY;
}

/* Halves the tile in hand, without its overlap, into the level below. */
static void halve_into(struct cutter *c, struct level *below, uint32_t column, uint32_t row, uint32_t skip_x, uint32_t skip_y, uint32_t width,
                       uint32_t height, int state) {
    uint32_t half = c->page.tile / 2, x = column * half, y = row * half;
    below->cells[(size_t)row * below->cells_across + column] = (uint8_t)state;
    if (state == WHITE) return;
    for (int k = state == GRAY; k < (state == GRAY ? 2 : 3); k++)
        for (uint32_t i = 0; i < (height + 1) / 2; i++) {
            const uint8_t *one = c->plane[k] + (skip_y + 2 * (size_t)i) * c->stride + skip_x;
            c->kernels.halve(one, one + c->stride, (width + 1) / 2, below->plane[k] + ((y + i) % below->ring) * below->stride + x);
        }
}

static void copy_preview(struct cutter *c, uint32_t left, uint32_t top, uint32_t skip_x, uint32_t skip_y, uint32_t width, uint32_t height,
                         int state, uint32_t level_width) {
    for (uint32_t y = 0; y < height; y++) {
        uint8_t *out = c->page.preview + 3 * ((size_t)(top + y) * level_width + left);
        if (state == WHITE) {
            memset(out, 255, 3 * (size_t)width);
            continue;
        }
        size_t at = (skip_y + y) * c->stride + skip_x;
        for (uint32_t x = 0; x < width; x++, at++)
            for (int k = 0; k < 3; k++) *out++ = c->plane[state == GRAY ? 1 : k][at];
    }
}

static int cut_row(struct cutter *c, uint32_t number, uint32_t row) {
    struct level *level = &c->levels[number];
    uint32_t tile = c->page.tile, overlap = c->page.overlap;
    uint32_t core_top = row * tile, core_bottom = level->height - core_top > tile ? core_top + tile : level->height;
    uint32_t top = row ? core_top - overlap : 0, bottom = level->height - core_bottom > overlap ? core_bottom + overlap : level->height;
    for (uint32_t column = 0; column < level->columns; column++) {
        uint32_t core_left = column * tile, core_right = level->width - core_left > tile ? core_left + tile : level->width;
        uint32_t left = column ? core_left - overlap : 0, right = level->width - core_right > overlap ? core_right + overlap : level->width;
        uint32_t width = right - left, height = bottom - top;
        int state = number == c->top ? take_from_page(c, left, top, width, height, level->width - right >= width)
                                     : take_from_level(c, level, left, top, width, height);
        int error;
        if (state != WHITE) {
            pad(c, width, height, state);
            int64_t size = encode(c, width, height, state == COLOUR);
            error = size < 0 ? (int)size : store(c, number, column, row, (size_t)size);
        } else {
            error = 0;
        }
        if (error) return error;
        if (number)
            halve_into(c, &c->levels[number - 1], column, row, core_left - left, core_top - top, core_right - core_left, core_bottom - core_top,
                       state);
        if (number == c->page.preview_level)
            copy_preview(c, core_left, core_top, core_left - left, core_top - top, core_right - core_left, core_bottom - core_top, state,
                         level->width);
        if (state == WHITE && (error = store_white(c, width, height))) return error;
    }
    return 0;
}

/* Cuts all rows of tiles whose pixels are there, of this level and of those below. */
static int cut_level(struct cutter *c, uint32_t number) {
    struct level *level = &c->levels[number];
    while (level->next < level->rows) {
        uint64_t needed = (uint64_t)(level->next + 1) * c->page.tile + c->page.overlap;
        if (level->ready < (needed < level->height ? needed : level->height)) break;
        int error = cut_row(c, number, level->next);
        if (error) return error;
        level->next++;
        if (!number) continue;
        struct level *below = &c->levels[number - 1];
        uint64_t made = (uint64_t)level->next * (c->page.tile / 2);
        below->ready = made < below->height ? (uint32_t)made : below->height;
        if ((error = cut_level(c, number - 1))) return error;
    }
    return 0;
}

static int set_up(struct cutter *c) {
    const struct page *page = &c->page;
    uint32_t width = page->width, height = page->height;
    if (!width || !height || width > MAX_SIDE || height > MAX_SIDE || page->stride < 3 * (uint64_t)width) return -EINVAL;
    if (page->stride > UINT64_MAX / 2 / MAX_SIDE) return -EINVAL;
    if (page->tile < 2 || page->tile % 2 || page->tile > MAX_TILE / 2 || page->overlap > page->tile / 2) return -EINVAL;
    uint32_t longest = width > height ? width : height;
    c->top = longest > 1 ? 32 - (uint32_t)__builtin_clz(longest - 1) : 0;
    if (c->top >= MAX_LEVELS || page->preview_level > c->top) return -EINVAL;
    for (int i = 0; i < 2; i++) {
        int error = read_quantizer(page->quantizers + 64 * i, &c->quantizers[i]);
        if (error) return error;
    }
    for (int32_t value = 1; value < VALUES / 2; value++) {
        uint32_t size = 32 - (uint32_t)__builtin_clz((uint32_t)value);
        c->values[value] = size << 16 | (uint32_t)value;
        c->values[VALUES - value] = size << 16 | (~(uint32_t)value & ((1u << size) - 1));
    }
    for (uint32_t k = 0; k < 64; k++)
        for (uint32_t used = 0; used < 256; used++)
            if (used >> (ZIGZAG[k] % 8) & 1) c->zigzag[ZIGZAG[k] / 8][used] |= (uint64_t)1 << k;
    for (uint32_t number = c->top + 1; number-- > 0;) {
        struct level *level = &c->levels[number];
        level->width = width;
        level->height = height;
        level->columns = (width + page->tile - 1) / page->tile;
        level->rows = (height + page->tile - 1) / page->tile;
        level->stride = width;
        uint32_t kept = page->tile + page->tile / 2 + 2 * page->overlap;
        level->ring = kept < height ? kept : height;
        if (number == c->top) {
            level->ready = height;
        } else {
            const struct level *above = &c->levels[number + 1];
            level->cells_across = above->columns;
            level->cells = calloc((size_t)above->columns * above->rows, 1);
            if (!level->cells) return -ENOMEM;
            for (int k = 0; k < 3; k++)
                if (!(level->plane[k] = malloc((size_t)level->ring * level->stride))) return -ENOMEM;
        }
        width = (width + 1) / 2;
        height = (height + 1) / 2;
    }
    uint32_t side = (page->tile + 2 * page->overlap + 8) / 8 * 8;
    c->stride = side + 32; /* a register may reach beyond the last column */
    for (int k = 0; k < 3; k++)
        if (!(c->plane[k] = malloc(c->stride * (side + 1)))) return -ENOMEM;
    size_t across = side / 8;
    c->samples = malloc(3 * across * 64 * sizeof *c->samples);
    c->blocks = malloc(3 * across * 64 * sizeof *c->blocks);
    c->buffer = malloc(BUFFER_BYTES);
    return c->samples && c->blocks && c->buffer ? 0 : -ENOMEM;
}

static int put_trailer(struct cutter *c) {
    struct trailer trailer = {c->written, (uint32_t)c->count, c->white_count, "SLTILES1"};
    int error = append(c, c->entries, c->count * sizeof *c->entries);
    if (!error) error = append(c, c->whites, c->white_count * sizeof *c->whites);
    if (!error) error = append(c, &trailer, sizeof trailer);
    return error ? error : flush(c);
}

/* Cuts a page. Returns 0, or a negative number of errno.h: EINVAL for what cannot be cut, EFBIG when the limit is reached, ENOMEM, or the error
 * of the file. */
int sitelink_cut(const struct page *page) {
    struct cutter *c = calloc(1, sizeof *c);
    if (!c) return -ENOMEM;
    c->page = *page;
    c->kernels = choose_kernels();
    int error = set_up(c);
    if (!error) error = cut_level(c, c->top);
    if (!error) error = put_trailer(c);
    for (uint32_t number = 0; number < MAX_LEVELS; number++) {
        free(c->levels[number].cells);
        for (int k = 0; k < 3; k++) free(c->levels[number].plane[k]);
    }
    for (int k = 0; k < 3; k++) free(c->plane[k]);
    free(c->samples);
    free(c->blocks);
    free(c->tokens);
    free(c->jpeg);
    free(c->buffer);
    free(c->entries);
    free(c->hashes);
    free(c->places);
    free(c);
    return error;
}

/* The version of what is written and of its bytes. */
int sitelink_cutter_version(void) { return 2; }
