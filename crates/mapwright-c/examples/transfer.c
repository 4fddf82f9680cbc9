/* Accounts in a file, and transfers between them that a crash can't tear: a commit is all or nothing, and the next run goes on from the last.
 *
 *   transfer FILE                       what each account has, and the sum
 *   transfer FILE FROM TO AMOUNT        moves an amount
 *   transfer FILE FROM TO AMOUNT crash  is killed halfway: money was taken from one account and not given to the other
 *
 *   cc -o transfer transfer.c $(pkg-config --cflags --libs mapwright)
 */
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <mapwright.h>

enum { ACCOUNTS = 5, START = 100 };

/* Says what failed, and ends. What was not committed is dropped then, as by any other end of a program. */
static void must(int code, const char *what) {
    if (code >= 0) return;
    fprintf(stderr, "transfer: %s: %s\n", what, mapwright_last_error());
    exit(1);
}

static int64_t get(mapwright_map *map, uint64_t account) {
    int64_t amount;
    must(mapwright_map_read_at(map, account * sizeof amount, &amount, sizeof amount), "reading");
    return amount;
}

static void set(mapwright_map *map, uint64_t account, int64_t amount) {
    must(mapwright_map_write_at(map, account * sizeof amount, &amount, sizeof amount), "writing");
}

/* Opens the file, which is brought to its last commit if a program was killed; fills it if it is new. */
static mapwright_map *open_accounts(const char *path) {
    mapwright_options *options;
    mapwright_map *map;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) perror(path), exit(1);
    close(fd);
    must(mapwright_options_new(&options), "options");
    must(mapwright_options_set_durability(options, MAPWRIGHT_DURABILITY_ATOMIC), "options");
    must(mapwright_map_open_mut(path, options, &map), "opening");
    must(mapwright_options_close(options), "options");
    if (mapwright_map_length(map) == 0) {
        must(mapwright_map_resize(map, ACCOUNTS * sizeof(int64_t)), "growing");
        for (uint64_t account = 0; account < ACCOUNTS; account++) set(map, account, START);
        must(mapwright_map_commit(map), "commit"); /* the length too: an empty file, or all accounts */
    }
    return map;
}

static void transfer(mapwright_map *map, uint64_t from, uint64_t to, int64_t amount, int crash) {
    set(map, from, get(map, from) - amount);
    if (crash) raise(SIGKILL);
    set(map, to, get(map, to) + amount);
    if (get(map, from) < 0) {
        printf("account %" PRIu64 " has not so much\n", from);
        must(mapwright_map_rollback(map), "rollback");
        return;
    }
    must(mapwright_map_commit(map), "commit"); /* both, on the device */
}

int main(int count, char **argument) {
    if (count != 2 && count != 5 && count != 6) {
        fprintf(stderr, "usage: transfer FILE [FROM TO AMOUNT [crash]]\n");
        return 2;
    }
    mapwright_map *map = open_accounts(argument[1]);
    if (count > 2) {
        uint64_t from = strtoull(argument[2], NULL, 10), to = strtoull(argument[3], NULL, 10);
        transfer(map, from % ACCOUNTS, to % ACCOUNTS, strtoll(argument[4], NULL, 10), count == 6);
    }
    int64_t sum = 0;
    for (uint64_t account = 0; account < ACCOUNTS; account++) {
        printf("%" PRId64 " ", get(map, account));
        sum += get(map, account);
    }
    printf("= %" PRId64 "\n", sum);
    must(mapwright_map_close(map), "closing");
    return 0;
}
