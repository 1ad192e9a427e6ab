/* Cuts pages of all kinds and compares every file with a plain computation of the levels: cutter_fuzz FIRST_SEED CASES
 *
 * Prints one checksum of all files. It is the same on every processor. A failure prints its seed, and the exit code is 1.
 *
 * Every buffer has exactly the size that the cutter may use, so that AddressSanitizer sees a byte too many. Some cases are wrong on purpose:
 * bad numbers, a full file, a file that cannot be written, no memory.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

static long allocations_left = -1; /* how many succeed; -1: all */

static int may_allocate(void) { return allocations_left < 0 || (allocations_left > 0 && allocations_left--); }
static void *fuzz_malloc(size_t size) { return may_allocate() ? malloc(size) : NULL; }
static void *fuzz_calloc(size_t number, size_t size) { return may_allocate() ? calloc(number, size) : NULL; }
static void *fuzz_realloc(void *old, size_t size) { return may_allocate() ? realloc(old, size) : NULL; }

#define malloc fuzz_malloc
#define calloc fuzz_calloc
#define realloc fuzz_realloc
#include "../../activities/render/cutter.c"
#undef malloc
#undef calloc
#undef realloc

static uint64_t random_state;

/* A number below limit: https://prng.di.unimi.it/splitmix64.c. Never called twice in one expression: the order of calls would be the compiler's. */
static uint32_t below(uint32_t limit) {
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 32) % limit;
}

static uint64_t seed;

static void check(int is_right, const char *what) {
    if (is_right) return;
    fprintf(stderr, "seed %llu: %s\n", (unsigned long long)seed, what);
    exit(1);
}

static void *get(size_t size) {
    void *memory = malloc(size);
    check(memory != NULL, "no memory for the test");
    return memory;
}

/* ---- A case ---- */

/* A side that is small, near a multiple of a tile, or anything up to the limit. */
static uint32_t side(uint32_t tile, uint32_t limit) {
    uint32_t length;
    switch (below(4)) {
    case 0: length = 1 + below(40); break;
    case 1: length = tile * (1 + below(4)) + below(5); break;
    case 2: length = tile * (1 + below(4)) - below(2); break;
    default: length = 1 + below(limit);
    }
    return length < limit ? length : limit;
}

static void choose_sizes(struct page *page) {
    static const uint32_t COMMON[] = {2, 4, 6, 16, 64, 128, 254, 256, 510, 512, 1024, 2048};
    page->tile = below(3) ? COMMON[below(sizeof COMMON / sizeof *COMMON)] : 2 * (1 + below(200));
    page->overlap = below(3);
    if (!below(3)) page->overlap = page->tile / 2 - below(page->tile / 2);
    if (page->overlap > page->tile / 2) page->overlap = page->tile / 2;
    uint32_t limit = page->tile < 16 ? 150 : 900;
    page->width = side(page->tile, limit);
    page->height = side(page->tile, limit);
    if (!below(12)) { /* a thin page of many levels */
        page->width = 1 + below(page->tile < 16 ? 4000 : 70000);
        page->height = 1 + below(3);
        if (below(2)) {
            uint32_t width = page->width;
            page->width = page->height;
            page->height = width;
        }
    }
    uint32_t longest = page->width > page->height ? page->width : page->height, levels = 1;
    while (1u << (levels - 1) < longest) levels++;
    page->preview_level = below(2) ? levels - 1 - below(levels < 3 ? levels : 3) : below(levels);
    page->stride = 3 * (uint64_t)page->width;
    if (below(2)) page->stride += below(2) ? 1 : below(70);
    page->blue_first = below(2);
}

static void fill(uint8_t *pixels, const struct page *page, uint32_t left, uint32_t top, uint32_t width, uint32_t height, uint32_t kind) {
    uint8_t colour[3];
    for (int k = 0; k < 3; k++) colour[k] = k && kind % 2 ? colour[0] : (uint8_t)below(256);
    for (uint32_t y = top; y < top + height; y++)
        for (uint32_t x = left; x < left + width; x++) {
            uint8_t *pixel = pixels + y * page->stride + 3 * (uint64_t)x;
            for (int k = 0; k < 3; k++) switch (kind / 2) {
                case 0: pixel[k] = colour[k]; break;
                case 1: pixel[k] = k && kind % 2 ? pixel[0] : (uint8_t)below(256); break;
                case 2: pixel[k] = (x ^ y) & 1 ? colour[k] : 255; break;
                case 3: pixel[k] = (x & y) & 4 ? 0 : 255; break;
                case 4: pixel[k] = k && kind % 2 ? pixel[0] : (uint8_t)(255 - !below(40)); break;
                default: pixel[k] = k && kind % 2 ? pixel[0] : (uint8_t)(255 * below(2)); break;
                }
        }
}

static uint8_t *paint(const struct page *page) {
    size_t size = (page->height - 1) * page->stride + 3 * (size_t)page->width;
    uint8_t *pixels = get(size);
    memset(pixels, 255, size);
    uint32_t shapes = below(4) ? below(12) : 0;
    if (!below(3)) fill(pixels, page, 0, 0, page->width, page->height, below(12));
    while (shapes--) {
        uint32_t left = below(page->width), top = below(page->height), width = 1 + below(page->width - left), height = page->height - top;
        height = 1 + below(below(2) || height < 9 ? height : 9);
        fill(pixels, page, left, top, width, height, below(12));
    }
    return pixels;
}

static void make_quantizers(uint8_t *quantizers) {
    uint32_t kind = below(3);
    for (int i = 0; i < 128; i++) quantizers[i] = (uint8_t)(kind == 0 ? 1 : kind == 1 ? 1 + below(255) : 1 + below(20));
}

/* Breaks one number. */
static void spoil(struct page *page, uint8_t *quantizers) {
    switch (below(13)) {
    case 0: page->width = 0; break;
    case 1: page->height = 0; break;
    case 2: page->width = MAX_SIDE + 1 + below(1000); break;
    case 3: page->height = UINT32_MAX - below(3); break;
    case 4: page->stride = 3 * (uint64_t)page->width - 1; break;
    case 5: page->stride = UINT64_MAX - below(1000); break;
    case 6: page->tile = 0; break;
    case 7: page->tile++; break;
    case 8: page->tile = MAX_TILE / 2 + 2 * (1 + below(1000)); break;
    case 9: page->overlap = page->tile / 2 + 1 + below(1000); break;
    case 10: page->overlap = UINT32_MAX; break;
    case 11: page->preview_level += 32; break;
    default: quantizers[below(128)] = 0;
    }
}

/* ---- What must be in the file ---- */

struct picture {
    uint32_t width, height;
    uint8_t *pixels; /* R, G, B */
};

static struct picture whole(const struct page *page) {
    struct picture picture = {page->width, page->height, get(3 * (size_t)page->width * page->height)};
    uint8_t *out = picture.pixels;
    for (uint32_t y = 0; y < page->height; y++)
        for (uint32_t x = 0; x < page->width; x++)
            for (int k = 0; k < 3; k++) *out++ = page->pixels[y * page->stride + 3 * (uint64_t)x + (uint64_t)(page->blue_first ? 2 - k : k)];
    return picture;
}

static struct picture half_of(struct picture above) {
    uint32_t width = (above.width + 1) / 2, height = (above.height + 1) / 2;
    struct picture picture = {width, height, get(3 * (size_t)width * height)};
    for (uint32_t y = 0; y < height; y++)
        for (uint32_t x = 0; x < width; x++)
            for (uint32_t k = 0; k < 3; k++) {
                uint32_t sum = 2;
                for (uint32_t i = 0; i < 4; i++) {
                    uint32_t from_x = 2 * x + i % 2 < above.width ? 2 * x + i % 2 : above.width - 1;
                    uint32_t from_y = 2 * y + i / 2 < above.height ? 2 * y + i / 2 : above.height - 1;
                    sum += above.pixels[3 * ((size_t)from_y * above.width + from_x) + k];
                }
                picture.pixels[3 * ((size_t)y * width + x) + k] = (uint8_t)(sum >> 2);
            }
    return picture;
}

struct span {
    uint32_t from, to;
};

static struct span span_of(uint32_t length, uint32_t number, const struct page *page) {
    uint32_t from = number * page->tile, to = from + page->tile + page->overlap;
    return (struct span){number ? from - page->overlap : 0, to < length ? to : length};
}

static int components_of(struct picture picture, struct span across, struct span down) {
    int components = 0; /* of a white tile */
    for (uint32_t y = down.from; y < down.to; y++)
        for (uint32_t x = across.from; x < across.to; x++) {
            const uint8_t *pixel = picture.pixels + 3 * ((size_t)y * picture.width + x);
            if (pixel[0] != pixel[1] || pixel[1] != pixel[2]) return 3;
            if (pixel[0] != 255) components = 1;
        }
    return components;
}

static void check_jpeg(const uint8_t *file, uint64_t end, const struct entry *entry, uint32_t width, uint32_t height, int components) {
    check(entry->size > 100 && entry->offset < end && entry->size <= end - entry->offset, "a tile is not in the file");
    const uint8_t *jpeg = file + entry->offset;
    check(jpeg[0] == 0xff && jpeg[1] == 0xd8 && jpeg[entry->size - 2] == 0xff && jpeg[entry->size - 1] == 0xd9, "no JPEG");
    const uint8_t *frame = jpeg + 20 + 69 * (components == 1 ? 1 : 2);
    check(frame[1] == 0xc0 && frame[9] == components, "wrong components");
    check((uint32_t)(frame[5] << 8 | frame[6]) == height && (uint32_t)(frame[7] << 8 | frame[8]) == width, "wrong size of a tile");
}

static const struct entry *find(const struct entry *entries, uint32_t number, uint32_t level, uint32_t column, uint32_t row) {
    const struct entry *found = NULL;
    for (uint32_t i = 0; i < number; i++)
        if (entries[i].level == level && entries[i].column == column && entries[i].row == row) {
            check(found == NULL, "a tile is there twice");
            found = &entries[i];
        }
    return found;
}

static void check_level(const uint8_t *file, const struct trailer *trailer, const struct entry *entries, const struct page *page,
                        struct picture picture, uint32_t level, uint32_t *tiles) {
    uint32_t first = 0, number = 0; /* the entries of a level need not be together: those of this level are copied */
    struct entry *own = get((trailer->tiles + 1) * sizeof *own);
    for (; first < trailer->tiles; first++)
        if (entries[first].level == level) own[number++] = entries[first];
    *tiles += number;
    for (uint32_t row = 0; row * page->tile < picture.height; row++)
        for (uint32_t column = 0; column * page->tile < picture.width; column++) {
            struct span across = span_of(picture.width, column, page), down = span_of(picture.height, row, page);
            int components = components_of(picture, across, down);
            const struct entry *entry = number ? find(own, number, level, column, row) : NULL;
            check((entry != NULL) == (components > 0), "a white tile is there, or another one is missing");
            uint32_t width = across.to - across.from, height = down.to - down.from;
            if (!entry) entry = find(entries + trailer->tiles, trailer->whites, 0, width, height);
            check(entry != NULL, "a white tile's size is missing");
            check_jpeg(file, trailer->offset, entry, width, height, components ? components : 1);
        }
    free(own);
}

static void check_file(const uint8_t *file, uint64_t size, const struct page *page) {
    struct trailer trailer;
    check(size >= sizeof trailer, "no trailer");
    memcpy(&trailer, file + size - sizeof trailer, sizeof trailer);
    uint64_t entries_size = ((uint64_t)trailer.tiles + trailer.whites) * sizeof(struct entry);
    check(!memcmp(trailer.magic, "SLTILES1", 8) && trailer.offset + entries_size + sizeof trailer == size, "wrong trailer");
    struct entry *entries = get(entries_size + 1);
    memcpy(entries, file + trailer.offset, entries_size);
    struct picture picture = whole(page);
    uint32_t longest = page->width > page->height ? page->width : page->height, level = 0, tiles = 0;
    while (1u << level < longest) level++;
    for (;; level--) {
        check_level(file, &trailer, entries, page, picture, level, &tiles);
        if (level == page->preview_level)
            check(!memcmp(picture.pixels, page->preview, 3 * (size_t)picture.width * picture.height), "wrong preview");
        if (!level) break;
        struct picture half = half_of(picture);
        free(picture.pixels);
        picture = half;
    }
    check(picture.width == 1 && picture.height == 1 && tiles == trailer.tiles, "a tile of no level");
    free(picture.pixels);
    free(entries);
}

/* ---- Cases ---- */

static size_t preview_size(const struct page *page) {
    uint32_t width = page->width, height = page->height, levels = 1;
    while (1u << (levels - 1) < (width > height ? width : height)) levels++;
    for (uint32_t level = levels - 1; level > page->preview_level; level--) {
        width = (width + 1) / 2;
        height = (height + 1) / 2;
    }
    return 3 * (size_t)width * height;
}

/* Returns the checksum so far and of this case. */
static uint64_t run(int file, int read_only, uint64_t checksum) {
    uint8_t *quantizers = get(128);
    struct page page = {.quantizers = quantizers, .limit = (uint64_t)1 << 40, .file = file};
    choose_sizes(&page);
    make_quantizers(quantizers);
    uint8_t *pixels = paint(&page);
    page.pixels = pixels;
    page.preview = get(preview_size(&page));
    check(!ftruncate(file, 0) && !lseek(file, 0, SEEK_SET), "the file cannot be emptied");
    uint32_t kind = below(24);
    if (kind == 0) spoil(&page, quantizers);
    if (kind == 1) page.limit = below(1 << (4 + below(16)));
    if (kind == 2) page.file = read_only;
    if (kind == 3) allocations_left = below(24 + 4 * MAX_LEVELS);
    int error = sitelink_cut(&page);
    int lacks_memory = allocations_left == 0;
    allocations_left = -1;
    struct stat found;
    check(!fstat(file, &found), "no file");
    uint64_t size = (uint64_t)found.st_size;
    if (kind == 0) check(error == -EINVAL && !size, "a wrong page is cut");
    if (kind == 1) check((error == 0 || error == -EFBIG) && size <= page.limit, "the limit is not kept");
    if (kind == 2) check(error == -EBADF, "a file that cannot be written");
    if (kind == 3) check(error == 0 || (error == -ENOMEM && lacks_memory), "no memory");
    if (kind > 3) check(error == 0, "a page is not cut");
    if (!error) {
        uint8_t *data = get(size);
        check(pread(file, data, size, 0) == (ssize_t)size, "the file cannot be read");
        check_file(data, size, &page);
        for (uint64_t i = 0; i < size; i++) checksum = (checksum ^ data[i]) * 0x100000001b3u; /* FNV-1a */
        free(data);
    }
    free(page.preview);
    free(pixels);
    free(quantizers);
    return checksum;
}

int main(int count, char **arguments) {
    check(count == 3, "usage: cutter_fuzz FIRST_SEED CASES");
    uint64_t first = strtoull(arguments[1], NULL, 10), cases = strtoull(arguments[2], NULL, 10), checksum = 0xcbf29ce484222325u;
    FILE *file = tmpfile();
    check(file != NULL, "no temporary file");
    int read_only = open("/dev/null", O_RDONLY);
    for (seed = first; seed < first + cases; seed++) {
        random_state = seed;
        checksum = run(fileno(file), read_only, checksum);
    }
    close(read_only);
    fclose(file);
    printf("%016llx\n", (unsigned long long)checksum);
    return 0;
}
