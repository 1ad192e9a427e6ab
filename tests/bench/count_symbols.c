/* Counts the Huffman symbols of a baseline JPEG's scan; called by train_huffman.py. */
#include <stdint.h>

/* The length and the symbol of the code that 16 bits begin with. */
struct code {
    uint8_t length, symbol;
};

/* codes: 65,536 of each of the tables DC and AC of luminance, DC and AC of chrominance; counts: 256 of each. No component is subsampled. */
void count_symbols(const uint8_t *scan, uint32_t blocks, uint32_t components, const struct code *codes, uint64_t *counts) {
    uint64_t word = 0;
    uint32_t bits = 0;
    while (blocks--)
        for (uint32_t component = 0; component < components; component++)
            for (uint32_t place = 0; place < 64; place++) {
                while (bits <= 56) {
                    uint64_t byte = *scan;
                    if (byte != 0xff)
                        scan++;
                    else if (!scan[1])
                        scan += 2;
                    else
                        byte = 0; /* the scan ends here */
                    word |= byte << (56 - bits);
                    bits += 8;
                }
                uint32_t which = 2 * (component > 0) + (place > 0);
                struct code code = codes[65536 * which + (word >> 48)];
                uint32_t size = code.length + (code.symbol & 15u);
                counts[256 * which + code.symbol]++;
                word <<= size;
                bits -= size;
                if (place && !code.symbol) break;
                if (place) place += code.symbol >> 4;
            }
}
