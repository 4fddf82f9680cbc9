/* What the file should be, random numbers, and what is said of a difference. */
#include <stdarg.h>

#include "exerciser.h"

/* xorshift64*, of which the upper bits are good. */
static uint64_t draw(void) {
    uint64_t x = shared->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    shared->random = x;
    return x * 0x2545f4914f6cdd1d;
}

uint64_t below(uint64_t end) {
    return (draw() >> 11) % end;
}

bool one_in(uint64_t n) {
    return below(n) == 0;
}

/* Bytes that an operation is about: few, mostly. */
uint64_t some_len(void) {
    uint64_t kind = below(20);
    if (kind < 8)
        return 1 + below(16);
    if (kind < 16)
        return 1 + below(PAGE);
    return 1 + below(kind < 19 ? 3 * PAGE : LARGEST);
}

/* Where: anywhere, or where something was before, or at the end of a page or of the file. Always below its length if it has any. */
uint64_t some_offset(int file) {
    uint64_t len = shared->files[file].len, kind = below(10), at = below(MOST);
    if (len == 0)
        return 0;
    uint64_t *hot = &shared->hot[below(4)];
    if (kind < 4)
        at = *hot + below(2 * PAGE);
    else if (kind < 6)
        at = len - 1 - below(len < 300 ? len : 300);
    else if (kind < 8)
        at = at / PAGE * PAGE + PAGE - below(20);
    at %= len;
    if (one_in(50))
        *hot = at;
    return at;
}

/* Seldom a short one: most mappings are to be large. */
uint64_t some_file_len(void) {
    uint64_t len = below(MOST + 1);
    if (len < 2 * MIB && !one_in(4))
        len += 3 * MIB;
    if (one_in(3))
        len = len / PAGE * PAGE;
    return len;
}

void fill(unsigned char *bytes, uint64_t n) {
    uint64_t state = draw();
    for (uint64_t i = 0; i < n; i += 8) {
        state = state * 6364136223846793005 + 1442695040888963407;
        uint64_t mixed = state ^ state >> 29;
        memcpy(bytes + i, &mixed, n - i < 8 ? n - i : 8);
    }
}

/* What is about to be done: the last ones are told if it differs. */
void note(const char *format, ...) {
    char *line = shared->ring[shared->noted++ % RING];
    size_t room = sizeof shared->ring[0];
    int n = snprintf(line, room, "%llu %u%s: ", (unsigned long long)shared->done, me, is_child ? " child" : "");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + n, room - n, format, arguments);
    va_end(arguments);
}

void fail(const char *format, ...) {
    if (__atomic_exchange_n(&shared->failed, 1, __ATOMIC_SEQ_CST))
        _exit(1);
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    static const char *const phases[] = {"everything", "alone", "readers"};
    printf("different: seed %llu, %u processes, operation %llu, process %u%s, generation %u, phase %s: %s\n",
        (unsigned long long)shared->seed, shared->processes, (unsigned long long)shared->done, me,
        is_child ? " (its child)" : "", shared->generation, phases[shared->phase], text);
    uint64_t first = shared->noted > RING ? shared->noted - RING : 0;
    for (uint64_t i = first; i < shared->noted; i++)
        printf("  %s\n", shared->ring[i % RING]);
    for (unsigned i = 0; i < map_count; i++)
        printf("  has a map: at %p, pages %llu, of file %d from page %llu, protection %d, %s%s\n", (void *)maps[i].at,
            (unsigned long long)maps[i].pages, maps[i].file, (unsigned long long)maps[i].first, maps[i].protection,
            maps[i].shared ? "shared" : "private", maps[i].by_writer ? ", by a writer" : "");
    for (unsigned i = 0; i < descriptor_count; i++)
        printf("  has a descriptor: %d, of file %d, flags %#x\n", descriptors[i].fd, descriptors[i].file,
            descriptors[i].flags);
    for (int i = 0; i < FILES; i++)
        printf("  file %d%s: length %llu\n", i, i == (int)shared->current ? " (has the name)" : "",
            (unsigned long long)shared->files[i].len);
    fflush(stdout);
    _exit(1);
}

uint64_t pages_of(uint64_t bytes) {
    return (bytes + PAGE - 1) / PAGE;
}

/* Whether bytes that were found are those of the file. */
void compare(const unsigned char *found, int file, uint64_t at, uint64_t n, const char *by) {
    const unsigned char *expected = shared->files[file].bytes + at;
    if (memcmp(found, expected, n) == 0)
        return;
    uint64_t i = 0, wrong = 0;
    while (found[i] == expected[i])
        i++;
    for (uint64_t j = i; j < n; j++)
        wrong += found[j] != expected[j];
    fail("%s, file %d: at %llu of %llu: expected %#04x, found %#04x; %llu bytes of %llu from %llu differ", by, file,
        (unsigned long long)(at + i), (unsigned long long)shared->files[file].len, expected[i], found[i],
        (unsigned long long)wrong, (unsigned long long)n, (unsigned long long)at);
}

static void count_change(int file, uint64_t start, uint64_t end) {
    uint32_t *changes = shared->files[file].changes;
    for (uint64_t page = start / PAGE; page < pages_of(end) && page < PAGES; page++)
        __atomic_add_fetch(&changes[page], 1, __ATOMIC_SEQ_CST);
}

/* Bytes are about to change: threads that look on know of it. */
void begin_change(int file, uint64_t start, uint64_t end) {
    count_change(file, start, end);
}

void end_change(int file, uint64_t start, uint64_t end) {
    count_change(file, start, end);
}

/* Writes into the model, between the two above; the file grows if it ends before. */
void model_write(int file, uint64_t at, const unsigned char *bytes, uint64_t n) {
    struct file *of = &shared->files[file];
#if CANARY == 1
    if (n > 3 * PAGE && at % 2)
        n--;
#endif
    memcpy(of->bytes + at, bytes, n);
    if (at + n > of->len)
        of->len = at + n;
}

void model_zero(int file, uint64_t start, uint64_t end) {
    memset(shared->files[file].bytes + start, 0, end - start);
}

/* Cuts the file or makes it longer. Pages that are cut off lose their private copies, in all processes. */
void model_set_len(int file, uint64_t len) {
    struct file *of = &shared->files[file];
    if (len < of->len) {
#if CANARY == 2
        uint64_t kept = len % PAGE ? PAGE - len % PAGE : 0;
        if (len + kept < of->len)
            model_zero(file, len + kept, of->len);
#else
        model_zero(file, len, of->len);
#endif
        for (uint64_t page = pages_of(len); page < pages_of(of->len); page++)
            of->cuts[page]++;
    }
    of->len = len;
}

/* A file that nobody has any more, emptied; -1 if there is none. */
int free_file(void) {
    for (int file = 0; file < FILES; file++) {
        bool is_held = file == (int)shared->current;
        for (unsigned process = 0; process < shared->processes; process++)
            is_held |= shared->process[process].holds[file];
        if (!is_held) {
            model_set_len(file, 0);
            return file;
        }
    }
    return -1;
}

/* Which files this process has. Its children have no more of them, and end before it goes on. */
void recount(void) {
    if (is_child)
        return;
    bool holds[FILES] = {false}, copied[FILES] = {false};
    for (unsigned i = 0; i < map_count; i++) {
        holds[maps[i].file] = true;
        if (!maps[i].shared)
            copied[maps[i].file] = true;
    }
    for (unsigned i = 0; i < descriptor_count; i++)
        holds[descriptors[i].file] = true;
    memcpy(shared->process[me].holds, holds, sizeof holds);
    memcpy(shared->process[me].has_copies, copied, sizeof copied);
}

/* Whether anybody may have private copies of its pages. */
bool has_copies(int file) {
    bool any = false;
    for (unsigned process = 0; process < shared->processes; process++)
        any |= shared->process[process].has_copies[file];
    for (unsigned i = 0; i < map_count; i++)
        any |= maps[i].file == file && !maps[i].shared;
    return any;
}
