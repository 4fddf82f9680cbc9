/* A program that loads an object for itself alone, which calls a function of a library that it needs: nobody else sees either. */
#include <stdio.h>
#if defined(LIBRARY)
int io_setup(int events, void **context) {
    return context ? events + 1 : -22;
}

int io_uring_queue_init_mem(unsigned entries, void *ring, void *params, void *buffer, size_t len) {
    return ring == params && buffer == ring ? (int)(entries + len) : -22;
}
#elif defined(PLUGIN)
int io_setup(int events, void **context);
int io_uring_queue_init_mem(unsigned entries, void *ring, void *params, void *buffer, size_t len);

int call(void) {
    void *context = NULL;
    return 100 * io_setup(4, &context) + io_uring_queue_init_mem(3, &context, &context, &context, 9);
}
#else
#include <dlfcn.h>
#include <stdlib.h>

int main(int count, char **arguments) {
    void *plugin = count > 1 ? dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    int (*call)(void) = plugin ? (int (*)(void))dlsym(plugin, "call") : NULL;
    printf("%d\n", call ? call() : -1);
    return 0;
}
#endif
