/*
 * mapwright for C: memory-mapped files in user space.
 *
 * Made by `cargo xtask header` from crates/mapwright-c/src: change it there. What it is for: docs/c-interface.md.
 *
 * Returns. Functions return 0, or a number, and a negative code if they fail: -errno where the kernel has one, MAPWRIGHT_ERR_ otherwise.
 * mapwright_strerror has words for a code, mapwright_last_error the whole story of the last failure in this thread. Those
 * shaped like mmap(2) and its like return what their namesakes do, and set errno.
 *
 * Handles. What functions give out by a pointer to a pointer is a handle: a number, not an address. Each is closed once, by its close
 * function. NULL is -EFAULT; a handle that was closed, or is of another kind, is -EBADF. After a failure the handle is NULL.
 *
 * Threads. Any thread may call any function, on one handle too, unless it says otherwise.
 *
 * fork(2). Handles and maps are for the process that made them: a child must call no function of the library, but for those that say
 * so, and touch no memory of a map. An exec is fine.
 *
 * Signals. No function may be called in a signal handler. The library handles SIGBUS for addresses of its own, and passes others on to
 * the handler that was there before. A program that installs one later must do the same.
 *
 * Pointers. Unless a comment says otherwise they must not be NULL, are used during the call only, and what they point to must be the
 * caller's alone meanwhile. The library must not be unloaded by dlclose(3).
 */

#ifndef MAPWRIGHT_H
#define MAPWRIGHT_H

#include <stddef.h>
#include <stdint.h>

/**
 * The version of the binary interface that this header describes: the number in the library's soname, libmapwright.so.N. It grows when
 * a program that was linked with an older library could break.
 */
#define MAPWRIGHT_ABI_VERSION 0

/**
 * The library's own codes are -(MAPWRIGHT_ERROR_BASE + n); codes above -4096 are negated errno values.
 */
#define MAPWRIGHT_ERROR_BASE 10000

/**
 * The file was changed by somebody else since it was opened.
 */
#define MAPWRIGHT_ERR_CHANGED (-MAPWRIGHT_ERROR_BASE - 1)

/**
 * Everything in the pager's budget is pinned, or could not be written back.
 */
#define MAPWRIGHT_ERR_BUDGET (-MAPWRIGHT_ERROR_BASE - 2)

/**
 * An earlier write-back failed and was not acknowledged yet.
 */
#define MAPWRIGHT_ERR_LATCHED (-MAPWRIGHT_ERROR_BASE - 3)

/**
 * A limit of the system or the process is met; mapwright_last_error names it.
 */
#define MAPWRIGHT_ERR_LIMIT (-MAPWRIGHT_ERROR_BASE - 4)

/**
 * Something that others prepared is not what it must be to be used.
 */
#define MAPWRIGHT_ERR_NOT_TRUSTED (-MAPWRIGHT_ERROR_BASE - 5)

/**
 * The library made a mistake: please report it. Objects that the call concerned should be closed.
 */
#define MAPWRIGHT_ERR_PANIC (-MAPWRIGHT_ERROR_BASE - 6)

/**
 * Another error, of a kind that this version of the header does not know.
 */
#define MAPWRIGHT_ERR_OTHER (-MAPWRIGHT_ERROR_BASE - 7)

/**
 * A program that committed was killed, and what it committed last is in the file's journal only: open the file for writing once.
 */
#define MAPWRIGHT_ERR_UNRECOVERED (-MAPWRIGHT_ERROR_BASE - 8)

/**
 * The file can't have a journal, or the journal there is damaged, another file's or not to be trusted. Nothing was changed.
 */
#define MAPWRIGHT_ERR_JOURNAL (-MAPWRIGHT_ERROR_BASE - 9)

/**
 * Let the library choose. Small files opened for reading are read whole; the pager is next, and the kernel's mmap(2) where the
 * machine does not allow a pager.
 */
#define MAPWRIGHT_STRATEGY_AUTO 0

/**
 * Read the whole file when it is opened.
 */
#define MAPWRIGHT_STRATEGY_BUFFER 1

/**
 * The kernel's own mmap(2).
 */
#define MAPWRIGHT_STRATEGY_KERNEL 2

/**
 * The pager.
 */
#define MAPWRIGHT_STRATEGY_PAGER 3

/**
 * Nothing is known of the access pattern: read-ahead finds it.
 */
#define MAPWRIGHT_ADVICE_NORMAL 0

/**
 * From lower to higher offsets: full read-ahead.
 */
#define MAPWRIGHT_ADVICE_SEQUENTIAL 1

/**
 * In no order: nothing is read ahead but what turns out to be asked for together.
 */
#define MAPWRIGHT_ADVICE_RANDOM 2

/**
 * Faults are served by a thread of the pager.
 */
#define MAPWRIGHT_FAULTS_THREAD 0

/**
 * Faults are served by the thread that touches, in a SIGBUS handler: faster. System calls that are handed an absent page get EFAULT.
 */
#define MAPWRIGHT_FAULTS_IN_THREAD 1

/**
 * Let the library choose.
 */
#define MAPWRIGHT_FRAMES_AUTO 0

/**
 * Memory of the pager is shared memory.
 */
#define MAPWRIGHT_FRAMES_SHARED 1

/**
 * Memory of the pager is private, and its pages are moved: for files opened for reading, with a budget of 16 MiB and more.
 */
#define MAPWRIGHT_FRAMES_MOVED 2

/**
 * mapwright_map_flush makes changes durable, as msync(2) does. A crash may leave some of what was changed since the last flush, or while it ran.
 */
#define MAPWRIGHT_DURABILITY_FLUSH 0

/**
 * mapwright_map_commit makes all changes since the last one durable together: after any crash, of the program, the kernel or the machine, the file
 * has exactly what some commit left, and none older than the last that returned. For regular files with one name, and the pager.
 */
#define MAPWRIGHT_DURABILITY_ATOMIC 1

/**
 * Scratch: mapwright_map_flush writes to the file and does not wait for the device. A crash may leave anything.
 */
#define MAPWRIGHT_DURABILITY_NONE 2

/**
 * Reading.
 */
#define MAPWRIGHT_ACCESS_READ 0

/**
 * Reading and writing: what is written reaches the file, and everybody who has it mapped.
 */
#define MAPWRIGHT_ACCESS_WRITE 1

/**
 * Reading and writing of a private copy, made page by page when it is written.
 */
#define MAPWRIGHT_ACCESS_COPY 2

/**
 * Create the memory if it does not exist.
 */
#define MAPWRIGHT_SHM_CREATE 1

/**
 * Create it, and fail if it exists.
 */
#define MAPWRIGHT_SHM_EXCLUSIVE 2

/**
 * Open it for reading only. Not with the other two.
 */
#define MAPWRIGHT_SHM_READ_ONLY 4

/**
 * A file, or a part of one, in memory: opened for reading, or for reading and writing.
 */
typedef struct mapwright_map mapwright_map;

/**
 * Memory that the kernel maps: anonymous, of a file, or shared.
 */
typedef struct mapwright_mapping mapwright_mapping;

/**
 * Settings for opening maps. Every default is right for most uses.
 */
typedef struct mapwright_options mapwright_options;

/**
 * A page cache with a hard budget, shared by all maps that are opened with it.
 */
typedef struct mapwright_pager mapwright_pager;

/**
 * Ranges of a map that are held in memory.
 */
typedef struct mapwright_pin mapwright_pin;

/**
 * Memory with a name, which other processes open by it.
 */
typedef struct mapwright_shm mapwright_shm;

/**
 * What a pager did since it was made, and what it holds now. Counters only grow.
 *
 * The caller sets size to sizeof(mapwright_stats) before the call. A library that is newer than the program writes that much
 * and no more; one that is older writes less, and size says how many bytes: what is beyond was left alone.
 */
typedef struct {
  /**
   * Bytes of this structure: set by the caller, and then what was written.
   */
  size_t size;
  /**
   * Touches that found no page.
   */
  uint64_t faults;
  /**
   * Blocks that explicit access found resident.
   */
  uint64_t hits;
  /**
   * Blocks read from files, read-ahead included.
   */
  uint64_t fills;
  /**
   * Bytes read from files.
   */
  uint64_t filled_bytes;
  /**
   * Bytes of filled_bytes that were read ahead.
   */
  uint64_t read_ahead_bytes;
  /**
   * Fills that failed.
   */
  uint64_t failed_fills;
  /**
   * Calls that were tried again after a transient error.
   */
  uint64_t retries;
  /**
   * Blocks dropped to make room.
   */
  uint64_t evictions;
  /**
   * Fills of blocks that had been evicted a short time before.
   */
  uint64_t refaults;
  /**
   * Runs of 2 MiB that were put on a huge page.
   */
  uint64_t collapses;
  /**
   * Runs of pages written to files.
   */
  uint64_t write_backs;
  /**
   * Bytes written to files.
   */
  uint64_t written_back_bytes;
  /**
   * Blocks being filled now.
   */
  uint64_t queue_depth;
  /**
   * The most blocks that were being filled at one time.
   */
  uint64_t max_queue_depth;
  /**
   * Bytes of frames and metadata in use now.
   */
  uint64_t used_bytes;
  /**
   * The budget in bytes.
   */
  uint64_t budget_bytes;
  /**
   * Faults by the time they took: entry i counts those of 2^i to 2^(i+1) nanoseconds.
   */
  uint64_t fault_latency[40];
} mapwright_stats;

/**
 * A structure that C says the size of in its first field, a `size_t`: it may be of another version than ours.
 */

/**
 * A range of a map, as mapwright_map_get_many takes it.
 */
typedef struct {
  /**
   * The first byte, in the map.
   */
  uint64_t offset;
  /**
   * How many bytes; there may be none.
   */
  uint64_t length;
} mapwright_range;

/**
 * An array of C that is read, or NULL.
 */

/**
 * Bytes of a map, as mapwright_map_get_many gives them.
 */
typedef struct {
  /**
   * The first byte.
   */
  const void *data;
  /**
   * How many bytes.
   */
  size_t length;
} mapwright_bytes;

/**
 * An array of C that is written, or NULL.
 */

/**
 * Pages of 4096 bytes of a file, by their state in the kernel's page cache. The caller sets size to sizeof(mapwright_cache_stats) before the
 * call: see mapwright_stats.
 */
typedef struct {
  /**
   * Bytes of this structure: set by the caller, and then what was written.
   */
  size_t size;
  /**
   * In the page cache.
   */
  uint64_t cached;
  /**
   * Of these, changed and not yet written.
   */
  uint64_t dirty;
  /**
   * Of these, being written now.
   */
  uint64_t writeback;
  /**
   * Were in the page cache once and are not now, as far as the kernel remembers.
   */
  uint64_t evicted;
  /**
   * Of those, evicted recently.
   */
  uint64_t recently_evicted;
} mapwright_cache_stats;

/**
 * A structure that C says the size of in its first field, a `size_t`: it may be of another version than ours.
 */

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library, such as "0.1.0". Never NULL; never freed. Any thread may call it.
 */
const char *mapwright_version(void);

/**
 * The version as a number: major * 1000000 + minor * 1000 + patch. Any thread may call it.
 */
int mapwright_version_number(void);

/**
 * The version of the binary interface of the library that is loaded: compare it with MAPWRIGHT_ABI_VERSION, which is that of the
 * header. Any thread may call it.
 */
int mapwright_abi_version(void);

/**
 * The text of the last failure in this thread: what failed, with its values, and what to do about it.
 *
 * Never NULL: an empty string if nothing has failed. It stays valid until the next call of this library that fails in the same
 * thread, or the end of the thread. A call that succeeds leaves it alone. UTF-8.
 */
const char *mapwright_last_error(void);

/**
 * The code of the last failure in this thread, negative; 0 if nothing has failed. For functions shaped like mmap(2), whose
 * errno may stand for several codes.
 */
int mapwright_last_error_code(void);

/**
 * What a code means, in a few words: for the details of one failure see mapwright_last_error.
 *
 * code: what a function returned, or the same without its sign. Never NULL; the string is never freed. Any thread may call it.
 */
const char *mapwright_strerror(int code);

/**
 * Makes a pager.
 *
 * budget: the most memory that it uses, in bytes, for frames, buffers and tables together; at least 32 KiB and eight blocks of each file;
 * 0 for a quarter of what is available. out: gets the handle, or NULL; close it by mapwright_pager_close.
 *
 * Returns 0; -EINVAL for a budget that is too small; -EFAULT if out is NULL. Any thread may call it. After fork(2) the child
 * has neither the pager's threads nor its maps, and may use neither; an exec is fine.
 */
int mapwright_pager_new(uint64_t budget,
                        mapwright_pager **out);

/**
 * The pager of the process, which maps use that name none. Its budget is a quarter of the memory that was available when it was
 * first used. out: gets a handle of its own, or NULL; close it like any other, which does not end the pager.
 *
 * Returns 0; -EFAULT if out is NULL. Any thread may call it; for fork(2) see mapwright_pager_new.
 */
int mapwright_pager_global(mapwright_pager **out);

/**
 * Closes a handle of a pager. The pager ends, and its threads with it, when its last map is closed too.
 *
 * Returns 0; -EBADF for a handle that was closed before; -EFAULT for NULL. Any thread may call it.
 */
int mapwright_pager_close(mapwright_pager *pager);

/**
 * Copies the counters of a pager. out: a structure whose field size is set: see mapwright_stats.
 *
 * Returns 0; -EINVAL for a size that is none; -EBADF, -EFAULT. Any thread may call it; the counters are those of one moment, more or
 * less.
 */
int mapwright_pager_stats(mapwright_pager *pager,
                          mapwright_stats *out);

/**
 * Makes settings: all defaults. out: gets the handle, or NULL; close it by mapwright_options_close, at any time after the last map
 * was opened with it.
 *
 * Returns 0; -EFAULT if out is NULL. Any thread may call it, and one handle may be used by several. New settings may come with
 * new versions, as functions of their own.
 */
int mapwright_options_new(mapwright_options **out);

/**
 * Closes settings. Maps that were opened with them keep what they have.
 *
 * Returns 0; -EBADF for a handle that was closed before; -EFAULT for NULL.
 */
int mapwright_options_close(mapwright_options *options);

/**
 * The pager to use, and with it the budget. The settings keep it alive: its handle may be closed. The default is the pager of the process.
 *
 * Returns 0; -EBADF, -EFAULT.
 */
int mapwright_options_set_pager(mapwright_options *options,
                                mapwright_pager *pager);

/**
 * How the file is brought into memory: a MAPWRIGHT_STRATEGY_ constant.
 *
 * Returns 0; -EINVAL for another number; -EBADF, -EFAULT.
 */
int mapwright_options_set_strategy(mapwright_options *options, int strategy);

/**
 * Bytes that are read and evicted together: a power of two from 4096, the default, to 2 MiB. Opening fails with -EINVAL for
 * anything else.
 *
 * Returns 0; -EBADF, -EFAULT.
 */
int mapwright_options_set_block_size(mapwright_options *options,
                                     size_t bytes);

/**
 * What is known of the access pattern, and so how much is read ahead: a MAPWRIGHT_ADVICE_ constant. Nothing need be known.
 *
 * Returns 0; -EINVAL for another number; -EBADF, -EFAULT.
 */
int mapwright_options_set_advice(mapwright_options *options,
                                 int advice);

/**
 * Who serves the faults of touched pages: a MAPWRIGHT_FAULTS_ constant.
 *
 * Returns 0; -EINVAL for another number; -EBADF, -EFAULT.
 */
int mapwright_options_set_faults(mapwright_options *options, int mode);

/**
 * What the pager's memory of the file is like: a MAPWRIGHT_FRAMES_ constant.
 *
 * Returns 0; -EINVAL for another number; -EBADF, -EFAULT.
 */
int mapwright_options_set_frames(mapwright_options *options, int kind);

/**
 * When changes reach the file, and what a crash leaves: a MAPWRIGHT_DURABILITY_ constant. For maps that are opened for writing.
 *
 * With MAPWRIGHT_DURABILITY_ATOMIC changes go to a journal beside the file, named as the file with .mapwright-journal added, and from there to the
 * file, in the background and when the map is closed: see mapwright_map_commit. Opening fails with -EINVAL for a strategy that is not the pager,
 * -EOPNOTSUPP where the machine has none, and MAPWRIGHT_ERR_JOURNAL for a file that can't have a journal, or a journal that can't be used.
 *
 * Returns 0; -EINVAL for another number; -EBADF, -EFAULT.
 */
int mapwright_options_set_durability(mapwright_options *options,
                                     int durability);

/**
 * Which bytes of the file to map: length bytes from offset on, any numbers; length 0 for all from there to the end. The default is all.
 *
 * Returns 0; -EINVAL if the end is past all numbers; -EBADF, -EFAULT. Opening fails with -ERANGE where the file has no such bytes.
 */
int mapwright_options_set_range(mapwright_options *options,
                                uint64_t offset,
                                uint64_t length);

/**
 * How long an operation waits for the file and for room in the budget, in milliseconds: 30000 by default. Opening fails with -EINVAL for 0.
 *
 * Returns 0; -EBADF, -EFAULT.
 */
int mapwright_options_set_deadline(mapwright_options *options,
                                   uint64_t milliseconds);

/**
 * Address space to reserve for a map that may grow, in bytes. The default is twice the file's length and 16 GiB.
 *
 * Returns 0; -EBADF, -EFAULT.
 */
int mapwright_options_set_reserve(mapwright_options *options, uint64_t bytes);

/**
 * Whether to read around the kernel's page cache (O_DIRECT): 1 or 0. The default: for files larger than the budget.
 *
 * Returns 0; -EBADF, -EFAULT.
 */
int mapwright_options_set_direct(mapwright_options *options, int direct);

/**
 * Maps a file for reading.
 *
 * path: of a regular file or a block device. options: settings, or NULL for the defaults; read during the call only. out: gets
 * the handle, or NULL; the caller closes it by mapwright_map_close. Nothing is read yet, but for small files.
 *
 * Returns 0; -ENOENT, -EACCES and so on from open(2); -ENODEV for what can't be mapped; -ERANGE for a range past the end; -EINVAL
 * for settings that make no sense; -EOPNOTSUPP if the strategy asked for needs what the machine lacks; -EBUSY if the same pager has
 * the file open for writing; MAPWRIGHT_ERR_UNRECOVERED for a file that a killed program has left; -EFAULT if path or out is NULL. Any
 * thread may call it. A map is not for the children of fork(2).
 */
int mapwright_map_open(const char *path,
                       mapwright_options *options,
                       mapwright_map **out);

/**
 * Maps a file for reading and writing. It must exist. What is written reaches it by mapwright_map_flush and mapwright_map_close,
 * and when the budget forces it out: a program that is killed loses the rest. mapwright_options_set_durability has other ways.
 *
 * As mapwright_map_open; also -EACCES without permission to write, -EBUSY if anybody else writes the file by mapwright, or the
 * same pager has it open for reading. A file that a killed program has left is brought to its last commit first, whatever the
 * durability: MAPWRIGHT_ERR_JOURNAL if its journal can't be used.
 */
int mapwright_map_open_mut(const char *path,
                           mapwright_options *options,
                           mapwright_map **out);

/**
 * As mapwright_map_open and, if writable is not 0, mapwright_map_open_mut, for a file that is open. The descriptor stays the
 * caller's, who may close it at once. It needs /proc; errors name the file as a path there.
 *
 * Returns as these do; -EBADF for what is no open descriptor; -EACCES for one that was not opened for that.
 */
int mapwright_map_open_fd(int fd,
                          int writable,
                          mapwright_options *options,
                          mapwright_map **out);

/**
 * Flushes a map and closes it. Its memory is gone then: a touch is SIGSEGV, or somebody else's memory. With
 * MAPWRIGHT_DURABILITY_ATOMIC what was changed is committed, the file brought to it, and the journal removed; mapwright_map_abandon
 * closes a map without its changes.
 *
 * Returns 0; what mapwright_map_flush returns, and the map is closed all the same; -EBUSY while pins are held or another call on
 * the map has not returned: then nothing has happened; -EBADF for a handle that was closed before; -EFAULT for NULL. Any thread
 * may call it.
 */
int mapwright_map_close(mapwright_map *map);

/**
 * The bytes of a map, as memory.
 *
 * data: gets the address of the first byte, valid until the map is closed; it does not change when the map is resized, but with
 * MAPWRIGHT_STRATEGY_BUFFER. length: gets the number of bytes. Either may be NULL. Memory of a map opened for reading must not be written: see
 * MAPWRIGHT_FRAMES_MOVED for what happens otherwise.
 *
 * A touch of an absent page waits until it is read. If that fails there is a message on standard error, and SIGBUS: see
 * mapwright_map_read_at, mapwright_map_get and mapwright_map_checked, which return errors. Several threads may read and write it as
 * they may any memory. Not in children of fork(2), and not in signal handlers.
 *
 * Returns 0; -EBADF, -EFAULT.
 */
int mapwright_map_data(mapwright_map *map,
                       void **data,
                       size_t *length);

/**
 * The length of a map in bytes, or -EBADF, -EFAULT. Any thread may call it.
 */
int64_t mapwright_map_length(mapwright_map *map);

/**
 * Which strategy a map has: a MAPWRIGHT_STRATEGY_ constant other than AUTO. reason: NULL, or room for size bytes, which gets why,
 * in words, cut to fit, with a zero at the end.
 *
 * Returns the constant; -EBADF, -EFAULT.
 */
int mapwright_map_strategy(mapwright_map *map,
                           void *reason,
                           size_t size);

/**
 * Copies bytes out of a map, with an error where a touch would be SIGBUS.
 *
 * offset: of the first byte, in the map. into: room for length bytes, which must not lie in a map; NULL if length is 0.
 *
 * Returns 0; -ERANGE past the end, and nothing is copied; MAPWRIGHT_ERR_CHANGED if somebody changed or cut the file; -EIO and so on
 * from the device; -ETIMEDOUT; MAPWRIGHT_ERR_BUDGET; -EBADF, -EFAULT. into may be written in part then. Any thread may call it.
 */
int mapwright_map_read_at(mapwright_map *map,
                          uint64_t offset,
                          void *into,
                          size_t length);

/**
 * Copies bytes into a map. Pages that are absent are read first.
 *
 * from: length bytes, which may lie in memory that is not in a map only; NULL if length is 0. Several threads may write: what two write to
 * one place ends as some mixture. A map never grows by it.
 *
 * Returns 0; -EACCES for a map opened for reading; otherwise as mapwright_map_read_at, and a part may have been written then. -EINVAL
 * with MAPWRIGHT_STRATEGY_BUFFER: write by mapwright_map_data there.
 */
int mapwright_map_write_at(mapwright_map *map,
                           uint64_t offset,
                           const void *from,
                           size_t length);

/**
 * As mapwright_map_write_at, without reading pages that are replaced as a whole.
 */
int mapwright_map_overwrite(mapwright_map *map, uint64_t offset, const void *from, size_t length);

/**
 * Runs a function of the caller on the bytes of a map: a page that can't be read is zeros there, and only there, and the error is returned
 * when work has returned.
 *
 * work: gets an address, which is another than that of mapwright_map_data and is valid until it returns, the length in bytes, and user. It
 * must return: no longjmp, no exception, no exit of the thread. In it the map can be neither closed nor resized. What it returns is dropped; say
 * it through user.
 *
 * Returns 0; the error of the first page that could not be read while work ran, as for mapwright_map_read_at; -EBADF, -EFAULT if work is
 * NULL. Any thread may call it.
 */
int mapwright_map_checked(mapwright_map *map,
                          void (*work)(const void *data, size_t length, void *user),
                          void *user);

/**
 * Brings a range into memory, as far as the budget allows, and returns when it is there. length: 0 for all that follows offset.
 *
 * Returns 0; errors as for mapwright_map_read_at. Any thread may call it.
 */
int mapwright_map_prefetch(mapwright_map *map,
                           uint64_t offset,
                           uint64_t length);

/**
 * As mapwright_map_prefetch, without waiting. Errors show where the bytes are used. Returns 0; -ERANGE, -EBADF, -EFAULT.
 */
int mapwright_map_will_need(mapwright_map *map,
                            uint64_t offset,
                            uint64_t length);

/**
 * Says how the file will be read: a MAPWRIGHT_ADVICE_ constant, for all maps of the file in its pager.
 *
 * Returns 0; -EINVAL for another number; -EBADF, -EFAULT. Any thread may call it.
 */
int mapwright_map_advise(mapwright_map *map, int advice);

/**
 * Drops from memory what is clean and not pinned of a range. length: 0 for all that follows offset. Nothing is lost.
 *
 * Returns the number of bytes freed, 0 for strategies other than the pager; -ERANGE, -EBADF, -EFAULT. Any thread may call it.
 */
int64_t mapwright_map_evict(mapwright_map *map,
                            uint64_t offset,
                            uint64_t length);

/**
 * Which pages of a range are in memory, as mincore(2) tells it: in the pager's, or in the kernel's page cache with
 * MAPWRIGHT_STRATEGY_KERNEL.
 *
 * Pages are those of the file, of 4096 bytes, from the one that holds the byte at offset. into: room for size bytes; each page of the range gets
 * 1 or 0. It may have changed when this returns.
 *
 * Returns the number of pages; -ERANGE past the end; -EINVAL if there are more pages than size, and nothing is written then; -EBADF,
 * -EFAULT. Any thread may call it.
 */
int64_t mapwright_map_residency(mapwright_map *map,
                                uint64_t offset,
                                uint64_t length,
                                void *into,
                                size_t size);

/**
 * Bytes of the file that the pager holds in memory, in whole blocks; the length for other strategies, where it isn't known. Or -EBADF,
 * -EFAULT. Any thread may call it.
 */
int64_t mapwright_map_resident_bytes(mapwright_map *map);

/**
 * Makes the changes of a range durable, and the length: they are on the device when it returns. length: 0 for all that follows offset. With
 * MAPWRIGHT_DURABILITY_ATOMIC everything is committed, and with MAPWRIGHT_DURABILITY_NONE nothing waits for the device.
 *
 * Returns 0; -EIO, -ENOSPC and so on from the device, and no page counts as clean then; MAPWRIGHT_ERR_LATCHED as long as an earlier failure is
 * not acknowledged: see mapwright_map_acknowledge; MAPWRIGHT_ERR_CHANGED if somebody cut the file; -EACCES for a map opened for
 * reading; -ERANGE, -EBADF, -EFAULT. Any thread may call it, also while others write: what they write meanwhile may or may not be included.
 */
int mapwright_map_flush(mapwright_map *map,
                        uint64_t offset,
                        uint64_t length);

/**
 * Takes note of a write-back that failed, so that the next flush tries again. The pages concerned are still there and dirty.
 *
 * Returns 1 if there was a failure, whose text mapwright_last_error then is; 0 if there was none; -EACCES for a map opened for reading; -EBADF,
 * -EFAULT. Any thread may call it.
 */
int mapwright_map_acknowledge(mapwright_map *map);

/**
 * Changes the length of a map of a whole file, in bytes; new ones are zeros. The address stays, but with MAPWRIGHT_STRATEGY_BUFFER. The file changes
 * at the next flush. Nobody may touch what is cut off.
 *
 * Returns 0; -EINVAL past what was reserved, or for a map of a part; -EACCES for a map opened for reading; -EBUSY while pins are
 * held or another call on the map has not returned; errors of writing as for mapwright_map_flush; -EBADF, -EFAULT.
 */
int mapwright_map_resize(mapwright_map *map,
                         uint64_t length);

/**
 * Makes a range of a map resident and holds it there: reading it neither fails nor faults until the pin is released.
 *
 * offset, length: in bytes, of the map. pin: gets a handle, or NULL; release it by mapwright_pin_release, from any thread. data: gets the
 * address of the range, to be read: a commit may miss what is written by it; may be NULL. What is pinned counts against the budget and can't be evicted: hold it briefly.
 *
 * Returns 0; -ERANGE past the end; errors of reading as for mapwright_map_read_at; MAPWRIGHT_ERR_BUDGET if there is no room
 * within the deadline; -EBADF, -EFAULT if pin is NULL. Any thread may call it.
 */
int mapwright_map_get(mapwright_map *map,
                      uint64_t offset,
                      size_t length,
                      mapwright_pin **pin,
                      const void **data);

/**
 * As mapwright_map_get, for many ranges, which are read in one submission where they are not in memory, and held by one pin.
 *
 * ranges: count of them, in any order; they may overlap. pin: gets a handle, or NULL; release it by mapwright_pin_release, from any thread,
 * and with it all of them. bytes: room for count structures, which get address and length of each range, in the same order; nothing is
 * written there unless all are held. ranges and bytes may be NULL if count is 0.
 *
 * Returns as mapwright_map_get; MAPWRIGHT_ERR_BUDGET if all of them together are more than the budget has room for; -EFAULT if ranges, bytes
 * or pin is NULL; -EINVAL for more than memory has, and for addresses that are not aligned. Any thread may call it.
 */
int mapwright_map_get_many(mapwright_map *map,
                           const mapwright_range *ranges,
                           size_t count,
                           mapwright_pin **pin,
                           mapwright_bytes *bytes);

/**
 * Releases a pin. Returns 0; -EBADF for one that was released before; -EFAULT for NULL. Any thread may call it.
 */
int mapwright_pin_release(mapwright_pin *pin);

/**
 * Makes all changes of a map since the last commit durable together, bytes and length: after any crash all of them are there, or none. For
 * maps opened with MAPWRIGHT_DURABILITY_ATOMIC.
 *
 * It costs one sync, of which threads that ask at the same time share one. What others write while it runs may be included or not, each page as it was
 * at some time. Pins may be held, and addresses stay good.
 *
 * Returns 0; -EIO, -ENOSPC and so on from the device, or -ETIMEDOUT: not committed yet, everything is dirty still, and later calls are
 * MAPWRIGHT_ERR_LATCHED until mapwright_map_acknowledge or mapwright_map_rollback (a crash before the next commit or rollback that succeeds may show this
 * commit, whole); MAPWRIGHT_ERR_BUDGET if there is no room for the index of what the file lacks; -EINVAL for another durability; -EACCES for a map
 * opened for reading; -EBADF, -EFAULT. Any thread may call it.
 */
int mapwright_map_commit(mapwright_map *map);

/**
 * Drops all changes of a map since the last commit, of length too. For maps opened with MAPWRIGHT_DURABILITY_ATOMIC. The address stays. Nobody may
 * touch the memory meanwhile.
 *
 * Returns 0; -EBUSY while pins are held or another call on the map has not returned: then nothing has happened; -EIO and so on if a commit that failed before may be on
 * the disk and could not be undone: the changes are dropped all the same, and a crash may show that commit; -ETIMEDOUT if a page can't be dropped:
 * then commits are refused until a rollback succeeds; -EINVAL, -EACCES, -EBADF, -EFAULT as mapwright_map_commit. Any thread may call it.
 */
int mapwright_map_rollback(mapwright_map *map);

/**
 * Maps the last commit of a map for reading: its bytes stay what they are while writing goes on. For maps opened with
 * MAPWRIGHT_DURABILITY_ATOMIC.
 *
 * options: as for mapwright_map_open, or NULL; MAPWRIGHT_STRATEGY_KERNEL is -EINVAL, since no file has these bytes. out: gets the handle of another
 * map, or NULL; the caller closes it by mapwright_map_close, before or after the first. As long as it is open the journal grows, and the file stays
 * locked.
 *
 * Returns 0; -EINVAL, -EACCES, -EBADF, -EFAULT as mapwright_map_commit; otherwise as mapwright_map_open. Any thread may call it.
 */
int mapwright_map_snapshot(mapwright_map *map,
                           mapwright_options *options,
                           mapwright_map **out);

/**
 * Closes a map without its changes. With MAPWRIGHT_DURABILITY_ATOMIC what was not committed is dropped, the file brought to the last commit, and the
 * journal removed. With MAPWRIGHT_DURABILITY_NONE nothing is written any more: some of the changes may be in the file already.
 *
 * Returns 0; -EINVAL with MAPWRIGHT_DURABILITY_FLUSH, -EACCES for a map opened for reading, and -EBUSY while pins are held or another call on the map has
 * not returned: then it is still open; what mapwright_map_rollback and the file return, and the map is closed all the same: the journal has the last
 * commit then, for the next who opens the file for writing; -EBADF, -EFAULT. Any thread may call it.
 */
int mapwright_map_abandon(mapwright_map *map);

/**
 * Settings for the files that mapwright_mmap opens from now on: the pager and so the budget, advice, block size, who serves faults. NULL for
 * the defaults. They are copied: the handle may be closed.
 *
 * Returns 0; -EINVAL for settings with a range, with MAPWRIGHT_STRATEGY_BUFFER, or with another durability than MAPWRIGHT_DURABILITY_FLUSH; -EBADF. Any thread may call it.
 */
int mapwright_mmap_options(mapwright_options *options);

/**
 * mmap(2) over the pager: gives addresses at which a file's bytes are, read as they are touched.
 *
 * address: NULL: the library chooses. length: in bytes, not 0. protection: PROT_READ, or PROT_READ | PROT_WRITE. flags: MAP_SHARED, or, for reading, MAP_PRIVATE;
 * with MAP_POPULATE or MAP_NORESERVE if you like. fd: an open file, which may be closed afterwards. offset: a multiple of 4096.
 *
 * Otherwise than mmap(2): the range must not reach beyond the file's last page. Two mappings of one file may have the same addresses. A file is mapped
 * by readers or by one writer: once it is mapped for reading, mapping it for writing is EBUSY (map it for writing first; readers then share
 * that). What is written reaches the file by mapwright_msync, mapwright_munmap and exit(3), and when the budget forces it out: a program that
 * is killed loses the rest. What other programs write is not seen, but is an error. A page that can't be read is SIGBUS, after a message.
 *
 * Returns the address, or MAP_FAILED and errno: EINVAL for an address, a length of 0, an offset inside a page, or flags without a meaning;
 * EOPNOTSUPP for what the pager has not: MAP_FIXED, MAP_ANONYMOUS, private writing, PROT_EXEC, PROT_NONE, huge or locked pages (mapwright_mapping_* has most of them);
 * EACCES, EBADF, ENODEV as mmap(2); ENXIO past the file's end; EBUSY; ESTALE, EIO and so on from reading with MAP_POPULATE. Any thread may call
 * it; not for children of fork(2).
 */
void *mapwright_mmap(void *address,
                     size_t length,
                     int protection,
                     int flags,
                     int fd,
                     int64_t offset);

/**
 * munmap(2): takes addresses back, all that was given out or a part.
 *
 * address: of a page. length: in bytes; whole pages are unmapped. A range may be in the middle of a mapping, which then becomes two, or cover several.
 * Addresses of a part may stay readable until the whole file is unmapped: nobody may use them. With the last part of a file that is
 * written, its changes are made durable.
 *
 * Returns 0, or -1 and errno: EINVAL for an address inside a page, a length of 0, or a range of which nothing was given out by mapwright_mmap (where
 * munmap(2) is content); EIO, ENOSPC, ESTALE and so on if the changes could not be written: then all is mapped as before. Any thread may call
 * it.
 */
int mapwright_munmap(void *address,
                     size_t length);

/**
 * msync(2): makes the changes of a range durable, with MS_SYNC; MS_ASYNC does nothing, as with Linux. MS_INVALIDATE is taken and does nothing.
 *
 * Returns 0, or -1 and errno: EINVAL for an address inside a page or flags that exclude each other; ENOMEM for addresses that were not given out; EIO,
 * ENOSPC, ESTALE and so on: no page counts as clean then, and the next call tries again. Any thread may call it.
 */
int mapwright_msync(void *address,
                    size_t length,
                    int flags);

/**
 * mprotect(2), as far as it says what is so already: PROT_READ | PROT_WRITE of what was mapped for writing, PROT_READ of what was mapped for reading. The
 * pager's memory has one protection, that of its map.
 *
 * Returns 0, or -1 and errno: EACCES for writing to what was mapped for reading; EOPNOTSUPP for less than was asked for, and PROT_EXEC; EINVAL for an address
 * inside a page; ENOMEM for addresses that were not given out. Any thread may call it.
 */
int mapwright_mprotect(void *address,
                       size_t length,
                       int protection);

/**
 * madvise(2): MADV_NORMAL, MADV_SEQUENTIAL and MADV_RANDOM, for the whole file; MADV_WILLNEED; MADV_POPULATE_READ and MADV_POPULATE_WRITE, which wait
 * and return errors; MADV_DONTNEED, MADV_COLD and MADV_PAGEOUT, which drop what is clean and never lose a change.
 *
 * Returns 0, or -1 and errno: EINVAL for another advice, or an address inside a page; ENOMEM for addresses that were not given out; EIO, ESTALE and so on from
 * reading. Any thread may call it.
 */
int mapwright_madvise(void *address,
                      size_t length,
                      int advice);

/**
 * mincore(2): which pages of a range are in the pager's memory. vector: room for a byte for each page, which gets 1 or 0.
 *
 * Returns 0, or -1 and errno: EINVAL for an address inside a page; ENOMEM for addresses that were not given out; EFAULT if vector is NULL. Any thread may
 * call it.
 */
int mapwright_mincore(void *address,
                      size_t length,
                      void *vector);

/**
 * mremap(2): changes the length of a mapping. The address never changes.
 *
 * address, old_length: a whole mapping, as it was given out or was left. new_length: in bytes, not 0. flags: 0 or MREMAP_MAYMOVE. What grows beyond the end of a
 * file that is written makes the file longer, to the byte, with zeros: mremap(2) does not, and such programs call ftruncate(2) before; here they
 * must not.
 *
 * Returns the address, or MAP_FAILED and errno: EINVAL for what is no mapping, for other flags, and past what mapwright_options_set_reserve reserved;
 * EBUSY while another call on the file has not returned; ENXIO beyond the end of a file that is mapped for reading. Any thread may call
 * it.
 */
void *mapwright_mremap(void *address,
                       size_t old_length,
                       size_t new_length,
                       int flags);

/**
 * Maps memory of zeros, for this process alone.
 *
 * length: in bytes, not 0. protection: PROT_NONE, PROT_READ, or PROT_READ | PROT_WRITE. out: gets the handle, or NULL; close it by
 * mapwright_mapping_close.
 *
 * Returns 0; -EINVAL for no length, -EOPNOTSUPP for another protection; -ENOMEM; MAPWRIGHT_ERR_LIMIT at vm.max_map_count or a resource
 * limit; -EFAULT if out is NULL. Any thread may call it. Children of fork(2) have a copy of the memory; the handle is not for them.
 */
int mapwright_mapping_anonymous(size_t length,
                                int protection,
                                mapwright_mapping **out);

/**
 * Maps a file or a device.
 *
 * path: of what is mapped. access: a MAPWRIGHT_ACCESS_ constant. offset: any byte. length: 0 for all that follows; devices need one. out: gets
 * the handle, or NULL; close it by mapwright_mapping_close. What is written to the memory reaches the page cache at once, and survives
 * the program.
 *
 * Returns 0; -ENOENT and so on from open(2); -EACCES; -ENODEV for what can't be mapped; -ERANGE for an offset past the end; -EINVAL;
 * MAPWRIGHT_ERR_LIMIT; -EFAULT. Any thread may call it; children of fork(2) have the memory too, but not the handle.
 */
int mapwright_mapping_open(const char *path,
                           int access,
                           uint64_t offset,
                           size_t length,
                           mapwright_mapping **out);

/**
 * As mapwright_mapping_open, for what is open already. The descriptor stays the caller's, who may close it at once. An error at a page that can't
 * be had is -EFAULT: the library does not keep the file open to ask why.
 */
int mapwright_mapping_open_fd(int fd,
                              int access,
                              uint64_t offset,
                              size_t length,
                              mapwright_mapping **out);

/**
 * Unmaps a mapping. Its addresses may be somebody else's then.
 *
 * Returns 0; -EBUSY while another call on it has not returned; MAPWRIGHT_ERR_LIMIT if the kernel could not give the addresses back at
 * vm.max_map_count; -EBADF for a handle that was closed before; -EFAULT for NULL. Any thread may call it.
 */
int mapwright_mapping_close(mapwright_mapping *mapping);

/**
 * The memory of a mapping.
 *
 * data: gets the address of the first byte, valid until the mapping is closed, or resized so that it may move. length: gets its length in bytes. Either may
 * be NULL. A touch of a page that can't be had, such as past the end of a file that somebody cut, is SIGBUS; mapwright_mapping_read_at and
 * mapwright_mapping_write_at return errors.
 *
 * Returns 0; -EBADF, -EFAULT. Any thread may call it.
 */
int mapwright_mapping_data(mapwright_mapping *mapping,
                           void **data,
                           size_t *length);

/**
 * Copies bytes out of a mapping, with an error where a touch would be SIGBUS.
 *
 * into: room for length bytes; NULL if length is 0. Returns 0; -ERANGE past the end, and nothing is copied; -EACCES for memory with
 * PROT_NONE; for a page that can't be had MAPWRIGHT_ERR_CHANGED, -EIO or -EFAULT; -EBADF, -EFAULT. Any thread may call it.
 */
int mapwright_mapping_read_at(mapwright_mapping *mapping,
                              size_t offset,
                              void *into,
                              size_t length);

/**
 * Copies bytes into a mapping, with an error where a touch would be SIGBUS.
 *
 * from: length bytes; NULL if length is 0. Returns as mapwright_mapping_read_at; -EACCES for memory that is not writable; -EBUSY, of anonymous memory,
 * while another call on the mapping has not returned. A part may have been written. Any thread may call it.
 */
int mapwright_mapping_write_at(mapwright_mapping *mapping,
                               size_t offset,
                               const void *from,
                               size_t length);

/**
 * Has the changed pages of a range written to the file, and waits until they are durable: msync(2) with MS_SYNC. length: 0 for all that follows.
 *
 * Returns 0; what the device said; -ERANGE, -EBADF, -EFAULT. Any thread may call it.
 */
int mapwright_mapping_flush(mapwright_mapping *mapping,
                            size_t offset,
                            size_t length);

/**
 * Advises the kernel on the pages of a range. length: 0 for all that follows. advice: a MADV_ constant of sys/mman.h that keeps contents: what
 * takes them away has mapwright_mapping_discard.
 *
 * Returns 0; -EINVAL for an advice that takes contents away, and for one that is not for this memory; -EOPNOTSUPP for one that the kernel does not
 * know; -ERANGE, -EBADF, -EFAULT. Any thread may call it.
 */
int mapwright_mapping_advise(mapwright_mapping *mapping,
                             size_t offset,
                             size_t length,
                             int advice);

/**
 * Throws away what was written to whole pages of private memory (MADV_DONTNEED): anonymous memory is zeros then, a copy of a file shows the file.
 * length: 0 for all that follows.
 *
 * Returns 0; -EINVAL for shared memory and for parts of pages; -EACCES for memory that is not writable; -EBUSY while another call on the mapping
 * has not returned; -ERANGE, -EBADF, -EFAULT. Nobody may use the bytes meanwhile.
 */
int mapwright_mapping_discard(mapwright_mapping *mapping,
                              size_t offset,
                              size_t length);

/**
 * Which pages of a range are in memory, by mincore(2). into: room for size bytes; each page from the one that holds the first byte gets 1 or 0.
 * length: 0 for all that follows.
 *
 * Returns the number of pages; -EINVAL if there are more than size; -ERANGE, -EBADF, -EFAULT. Any thread may call it.
 */
int64_t mapwright_mapping_residency(mapwright_mapping *mapping,
                                    size_t offset,
                                    size_t length,
                                    void *into,
                                    size_t size);

/**
 * Changes what may be done to all of a mapping's bytes. protection: PROT_READ, PROT_READ | PROT_WRITE, and for anonymous memory
 * PROT_NONE. The address stays.
 *
 * Returns 0; -EACCES for a shared mapping of a file that was opened for reading; -EOPNOTSUPP for another protection; -EBUSY while another call on the mapping
 * has not returned; MAPWRIGHT_ERR_LIMIT; -EBADF, -EFAULT. Who touches the bytes at the same time may get SIGSEGV.
 */
int mapwright_mapping_protect(mapwright_mapping *mapping,
                              int protection);

/**
 * Keeps the pages of a mapping in memory, if locked is not 0, or lets them go again.
 *
 * Returns 0; MAPWRIGHT_ERR_LIMIT at RLIMIT_MEMLOCK; -ENOMEM or -EAGAIN if some page could not be had; -EBADF, -EFAULT. Any thread may call it.
 */
int mapwright_mapping_lock(mapwright_mapping *mapping,
                           int locked);

/**
 * Changes the length of a mapping, in bytes. Added bytes of anonymous memory are zeros; of a file they are what follows, also past its
 * end, where a touch is SIGBUS until it grows. may_move: whether the address may change, if not 0.
 *
 * Returns 0; -ENOMEM where it can't grow in place and must not move; -EINVAL for what does not resize; -EBUSY while another call on the mapping has not
 * returned; -EBADF, -EFAULT.
 */
int mapwright_mapping_resize(mapwright_mapping *mapping,
                             size_t length,
                             int may_move);

/**
 * Opens or creates shared memory with a name, as shm_open(3) does, where other programs find it.
 *
 * name: a slash and up to 255 bytes without another, in UTF-8. flags: MAPWRIGHT_SHM_ constants, or 0 to open for reading and writing what exists. mode:
 * permissions, such as 0600: what is created gets them, less the umask, and what is opened may give others no more. length: in bytes, of
 * what is created. out: gets the handle, or NULL; close it by mapwright_shm_close, which leaves the name.
 *
 * What exists must be a regular file of the effective user, not a symbolic link and without a second name: otherwise
 * MAPWRIGHT_ERR_NOT_TRUSTED.
 *
 * Returns 0; -ENOENT, -EEXIST; -EACCES without permission to write; MAPWRIGHT_ERR_NOT_TRUSTED, also where what exists has another length than that to be
 * created; -EINVAL for a name or flags that are none; -EILSEQ; -EFAULT. Any thread may call it.
 */
int mapwright_shm_open(const char *name,
                       int flags,
                       uint32_t mode,
                       uint64_t length,
                       mapwright_shm **out);

/**
 * Takes a name away. Who has the memory open or mapped keeps it. Returns 0; -ENOENT, -EACCES, -EINVAL, -EILSEQ; -EFAULT for NULL.
 */
int mapwright_shm_unlink(const char *name);

/**
 * The length in bytes when it was opened or last resized here, or -EBADF, -EFAULT. Any thread may call it.
 */
int64_t mapwright_shm_length(mapwright_shm *shm);

/**
 * Changes the length, in bytes, for all who have it. Mappings keep theirs: a touch of what was cut off is SIGBUS there.
 *
 * Returns 0; what ftruncate(2) says; -EBADF, -EFAULT. Any thread may call it.
 */
int mapwright_shm_resize(mapwright_shm *shm, uint64_t length);

/**
 * Maps all of the memory, for reading and, unless it was opened for reading only, writing. out: gets the handle of a mapping, or NULL; close it by
 * mapwright_mapping_close. It outlives the handle shm.
 *
 * Returns 0; MAPWRIGHT_ERR_LIMIT; -EBADF; -EFAULT if shm or out is NULL. Any thread may call it.
 */
int mapwright_shm_map(mapwright_shm *shm,
                      mapwright_mapping **out);

/**
 * Closes shared memory. Its name stays, and its mappings. Returns 0; -EBADF for a handle that was closed before; -EFAULT for NULL.
 */
int mapwright_shm_close(mapwright_shm *shm);

/**
 * Counts the pages of a range of a file that the kernel has in memory, by state (cachestat(2)). fd: an open file, which stays the
 * caller's.
 *
 * Returns 0; -EOPNOTSUPP before Linux 6.5; -EPERM for files that the caller neither owns nor may write; -EINVAL for a size that is
 * none; -ERANGE, -EBADF, -EFAULT. Any thread may call it, and children of fork(2).
 */
int mapwright_cache_stat(int fd,
                         uint64_t offset,
                         uint64_t length,
                         mapwright_cache_stats *out);

/**
 * Which pages of a file the kernel has in memory, by mincore(2): for a file that the caller neither owns nor may write, the kernel says all.
 *
 * Pages are those of the file, from the one that holds the byte at offset; past the end none is. into: room for size bytes; each page gets 1 or 0.
 *
 * Returns the number of pages; -EINVAL if there are more than size; -ENODEV for what can't be mapped; -ERANGE, -EBADF, -EFAULT.
 * Any thread may call it, and children of fork(2).
 */
int64_t mapwright_cache_residency(int fd,
                                  uint64_t offset,
                                  size_t length,
                                  void *into,
                                  size_t size);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MAPWRIGHT_H */
