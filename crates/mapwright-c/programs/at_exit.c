/* What mapwright_mmap mapped for writing is flushed when a program ends by exit(3): in the process that mapped it, and not in a child of
 * fork(2) that ends so too. The test looks into the file. */
#include <sys/wait.h>

#include "check.h"

int main(void) {
    mapwright_options *options = make_options(4 << 20);
    OK(mapwright_mmap_options(options));
    OK(mapwright_options_close(options));
    int fd = open(make_file("at-exit", PAGE), O_RDWR);
    char *data = mapwright_mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(data != MAP_FAILED);
    memcpy(data, "flushed at exit", 15);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) exit(7);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    CHECK(!file_has("at-exit", 0, "flushed", 7));
    puts("at_exit: ok");
    exit(0);
}
