/* A random exerciser of files and their mappings: what its parts share.
 *
 * Several processes work on one file, and each operation is checked against a model at once. The model is in memory that the processes share; they
 * take turns, and every decision is drawn from one generator that is in there too. So a run follows from its seed, however many processes it has.
 *
 * | part | what it does |
 * | --- | --- |
 * | main.c | starts the processes, whose turn it is, what may be done when |
 * | model.c | what the file should be, random numbers, what is said of a difference |
 * | maps.c | operations by mappings |
 * | changes.c | operations that change mappings: made, unmapped, moved, protected, advised |
 * | descriptors.c | reading and writing by descriptors and streams |
 * | lengths.c | cutting, growing, holes, other files of the same name |
 * | processes.c | children, programs that are started, threads that look on |
 * | storm.c | threads that store at the same time | */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#define PAGE 4096ull
#define MIB (1ull << 20)
/* The longest file. */
#define MOST (8 * MIB)
#define PAGES (MOST / PAGE)
/* Files that there are at a time: one has the name, the others are open or mapped still. */
#define FILES 4
#define PROCESSES 8
/* Of each process. */
#define DESCRIPTORS 8
#define MAPS 24
/* The largest read or write. */
#define LARGEST (64ull << 10)
#define RING 50

/* What a file should hold. Behind its end all bytes are 0, so that what a mapping shows of the last page is found here too. */
struct file {
    uint64_t len;
    /* Of each page: odd while somebody changes it, and another number after. */
    uint32_t changes[PAGES];
    /* Of each page: how often it was cut off. A private copy does not outlive that. */
    uint32_t cuts[PAGES];
    unsigned char bytes[MOST];
};

enum phase {
    /* All operations, by all processes. */
    EVERYTHING,
    /* One process has the file by one descriptor, and uses mappings. */
    ALONE,
    /* Nobody has it open for writing. */
    READERS,
};

/* How a process ends. */
enum ending { ORDERLY, AT_ONCE, KILLED, AS_ANOTHER };

struct shared {
    char path[4096];
    uint64_t seed, random;
    /* Operations: all that are to be done, those that were, those after which the processes end. */
    uint64_t goal, done, generation_end;
    uint32_t processes, generation;
    /* Whose turn it is: waited for by futex(2). */
    uint32_t turn;
    uint32_t over, failed;
    uint32_t phase, lone, phase_number;
    uint64_t phase_end;
    /* Which file has the name. */
    uint32_t current;
    /* Where operations meet. */
    uint64_t hot[4];
    struct {
        /* Of each open file description. A child of fork(2) has the same. */
        int64_t positions[DESCRIPTORS];
        bool holds[FILES], has_copies[FILES];
        uint32_t ending, adapted;
    } process[PROCESSES + 1]; // the last is that of programs that are started in between
    uint64_t noted;
    char ring[RING][192];
    struct file files[FILES];
};

/* A page of a private mapping that was written. */
struct copy {
    uint32_t cuts;
    unsigned char bytes[PAGE];
};

/* A mapping, with the same protection in all of it. */
struct map {
    unsigned char *at;
    uint64_t pages, first;
    int file, protection;
    /* By a descriptor that could write. */
    bool shared, by_writer;
    /* Of each page of a private one, where there is one. */
    struct copy **copies;
};

struct descriptor {
    int fd, file, flags;
    /* Which of the positions is its own: that of the one that it is a dup(2) of. */
    int description;
};

/* Of all processes. */
extern struct shared *shared;
/* Of this one. */
extern int model_fd;
extern unsigned me;
/* It is the child of one of them, which waits for its end. */
extern bool is_child;
extern struct map maps[MAPS];
extern unsigned map_count;
extern struct descriptor descriptors[DESCRIPTORS];
extern unsigned descriptor_count;
/* Held by threads that look at mappings, and for changing the list of them. */
extern pthread_rwlock_t maps_lock;
/* For what is read and written. */
extern unsigned char buffer[LARGEST], other_buffer[LARGEST];

#define CHECK(holds) \
    do { \
        if (!(holds)) \
            fail("%s:%d: not so: %s (errno %d: %s)", __FILE_NAME__, __LINE__, #holds, errno, strerror(errno)); \
    } while (0)

/* model.c */
uint64_t below(uint64_t end);
bool one_in(uint64_t n);
uint64_t some_len(void);
uint64_t some_offset(int file);
uint64_t some_file_len(void);
void fill(unsigned char *bytes, uint64_t n);
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void compare(const unsigned char *found, int file, uint64_t at, uint64_t n, const char *by);
void begin_change(int file, uint64_t start, uint64_t end);
void end_change(int file, uint64_t start, uint64_t end);
void model_write(int file, uint64_t at, const unsigned char *bytes, uint64_t n);
void model_zero(int file, uint64_t start, uint64_t end);
void model_set_len(int file, uint64_t len);
int free_file(void);
void recount(void);
bool has_copies(int file);
uint64_t pages_of(uint64_t bytes);

/* maps.c */
void watch_signals(void);
int guarded_copy(void *to, const void *from, uint64_t n);
int guarded_add(uint64_t *at, uint64_t number, uint64_t *before);
struct copy *copy_of(const struct map *map, uint64_t page);
struct map *some_map(bool for_writing);
bool accessible(const struct map *map, uint64_t page);
void private_page(struct map *map, uint64_t page);
bool span_to_read(struct map **map, uint64_t *at, uint64_t *n);
bool span_to_write(struct map **map, uint64_t *at, uint64_t *n);
void before_store(const struct map *map, uint64_t at, uint64_t n);
void after_store(struct map *map, uint64_t at, const unsigned char *bytes, uint64_t n);
void check_load(const struct map *map, uint64_t at, uint64_t n);
void check_maps(unsigned spots);
void look_elsewhere(int file, uint64_t at, uint64_t n);
void load(void);
void store(void);
void add(void);
void past_the_end(void);
void forbidden(void);
void by_system_calls(void);
void sync_map(void);
void sync_map_soon(void);
void in_core(void);

/* changes.c */
void map_some(void);
void map_large(void);
void map_over(void);
void map_refused(void);
void unmap(void);
void unmap_part(void);
void remap(void);
void protect(void);
void advise(void);
void advise_gently(void);
void remove_part(void);
void lock_and_unlock(void);
void unmap_at(unsigned index);

/* descriptors.c */
struct descriptor *some_descriptor(int access);
bool open_one(int flags);
void close_at(unsigned index);
void inherit_positions(void);
void open_some(void);
void close_some(void);
void duplicate(void);
void set_append(void);
void set_time(void);
void read_some(void);
void write_some(void);
void seek(void);
void copy_range(void);
void copy_by_pipe(void);
void stream(void);
void sync_file(void);
void look_at_status(void);
void modification_time(void);
void check_file(int fd);
void check_all(bool by_map);

/* lengths.c */
void truncate_some(void);
void allocate(void);
void shift(void);
void open_cutting(void);
void replace_file(void);
void create(const char *path);

/* processes.c */
void child(void);
void program(void);
int be_program(const char *what);
void start_threads(unsigned count);
void stop_threads(void);

/* storm.c */
void many_threads(void);

/* main.c */
void do_some(unsigned count);
