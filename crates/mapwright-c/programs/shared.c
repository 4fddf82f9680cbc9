/* Shared memory with a name, between two programs: this one, and itself started anew. */
#include <sys/wait.h>

#include "check.h"

static int other(const char *name) {
    mapwright_shm *shm;
    mapwright_mapping *mapping;
    char bytes[6] = "";
    OK(mapwright_shm_open(name, 0, 0600, 0, &shm));
    CHECK(mapwright_shm_length(shm) == 2 * PAGE);
    OK(mapwright_shm_map(shm, &mapping));
    OK(mapwright_mapping_read_at(mapping, 4094, bytes, 5));
    CHECK(strcmp(bytes, "hello") == 0);
    OK(mapwright_mapping_write_at(mapping, 0, "answer", 6));
    OK(mapwright_mapping_close(mapping));
    OK(mapwright_shm_close(shm));
    return 0;
}

int main(int count, char **arguments) {
    if (count > 1) return other(arguments[1]);
    char name[64];
    snprintf(name, sizeof name, "/mapwright-c-%d", (int)getpid());
    mapwright_shm *shm, *again;
    mapwright_mapping *mapping;
    FAILS(-ENOENT, mapwright_shm_open(name, 0, 0600, 0, &shm));
    FAILS(-EINVAL, mapwright_shm_open("/a/b", 0, 0600, 0, &shm));
    FAILS(-EILSEQ, mapwright_shm_open("/\xff", 0, 0600, 0, &shm));
    FAILS(-EINVAL, mapwright_shm_open(name, 8, 0600, 0, &shm));
    OK(mapwright_shm_open(name, MAPWRIGHT_SHM_CREATE | MAPWRIGHT_SHM_EXCLUSIVE, 0600, 2 * PAGE, &shm));
    FAILS(-EEXIST, mapwright_shm_open(name, MAPWRIGHT_SHM_EXCLUSIVE, 0600, PAGE, &again));
    FAILS(MAPWRIGHT_ERR_NOT_TRUSTED, mapwright_shm_open(name, MAPWRIGHT_SHM_CREATE, 0600, PAGE, &again));
    OK(mapwright_shm_map(shm, &mapping));
    OK(mapwright_mapping_write_at(mapping, 4094, "hello", 5));

    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        execl(arguments[0], arguments[0], name, (char *)NULL);
        _exit(127);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    char answer[7] = "";
    OK(mapwright_mapping_read_at(mapping, 0, answer, 6));
    CHECK(strcmp(answer, "answer") == 0);
    OK(mapwright_mapping_close(mapping));

    OK(mapwright_shm_open(name, MAPWRIGHT_SHM_READ_ONLY, 0600, 0, &again));
    OK(mapwright_shm_map(again, &mapping));
    FAILS(-EACCES, mapwright_mapping_write_at(mapping, 0, "x", 1));
    OK(mapwright_shm_resize(shm, PAGE));
    CHECK(mapwright_shm_length(shm) == PAGE);
    FAILS(MAPWRIGHT_ERR_CHANGED, mapwright_mapping_read_at(mapping, PAGE, answer, 6));
    OK(mapwright_mapping_close(mapping));
    OK(mapwright_shm_close(again));
    FAILS(-EBADF, mapwright_shm_close(again));
    OK(mapwright_shm_unlink(name));
    FAILS(-ENOENT, mapwright_shm_unlink(name));
    OK(mapwright_shm_close(shm));
    puts("shared: ok");
    return 0;
}
