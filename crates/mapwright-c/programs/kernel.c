/* The kernel's own mappings: anonymous memory and files, by copies that return errors. */
#include "check.h"

static void anonymous(void) {
    mapwright_mapping *mapping;
    void *data;
    size_t length;
    unsigned char bytes[16], resident[3];
    FAILS(-EINVAL, mapwright_mapping_anonymous(0, PROT_READ, &mapping));
    FAILS(-EOPNOTSUPP, mapwright_mapping_anonymous(PAGE, PROT_READ | PROT_EXEC, &mapping));
    CHECK(mapping == NULL);
    OK(mapwright_mapping_anonymous(3 * PAGE, PROT_READ | PROT_WRITE, &mapping));
    OK(mapwright_mapping_data(mapping, &data, &length));
    CHECK(length == 3 * PAGE);
    memcpy((char *)data + PAGE, "touched", 7);
    OK(mapwright_mapping_read_at(mapping, PAGE, bytes, 7));
    CHECK(memcmp(bytes, "touched", 7) == 0);
    OK(mapwright_mapping_write_at(mapping, 2 * PAGE, "copied", 6));
    CHECK(memcmp((char *)data + 2 * PAGE, "copied", 6) == 0);
    CHECK(mapwright_mapping_residency(mapping, 0, 0, resident, 3) == 3);
    CHECK(resident[0] == 0 && resident[1] == 1 && resident[2] == 1);
    FAILS(-EINVAL, mapwright_mapping_residency(mapping, 0, 0, resident, 2));
    FAILS(-ERANGE, mapwright_mapping_read_at(mapping, 3 * PAGE, bytes, 1));
    FAILS(-ERANGE, mapwright_mapping_write_at(mapping, SIZE_MAX, bytes, 2));

    OK(mapwright_mapping_protect(mapping, PROT_READ));
    FAILS(-EACCES, mapwright_mapping_write_at(mapping, 0, "x", 1));
    OK(mapwright_mapping_protect(mapping, PROT_NONE));
    FAILS(-EACCES, mapwright_mapping_read_at(mapping, 0, bytes, 1));
    FAILS(-EOPNOTSUPP, mapwright_mapping_protect(mapping, PROT_WRITE));
    OK(mapwright_mapping_protect(mapping, PROT_READ | PROT_WRITE));
    CHECK(memcmp((char *)data + PAGE, "touched", 7) == 0); /* at the same address, with the same bytes */

    OK(mapwright_mapping_advise(mapping, 0, PAGE, MADV_WILLNEED));
    FAILS(-EINVAL, mapwright_mapping_advise(mapping, 0, PAGE, MADV_DONTNEED));
    OK(mapwright_mapping_discard(mapping, PAGE, PAGE));
    FAILS(-EINVAL, mapwright_mapping_discard(mapping, 1, PAGE));
    CHECK(*((char *)data + PAGE) == 0);
    OK(mapwright_mapping_lock(mapping, 1));
    OK(mapwright_mapping_lock(mapping, 0));
    OK(mapwright_mapping_resize(mapping, 9 * PAGE, 1));
    OK(mapwright_mapping_data(mapping, &data, &length));
    CHECK(length == 9 * PAGE && memcmp((char *)data + 2 * PAGE, "copied", 6) == 0);
    OK(mapwright_mapping_close(mapping));
    FAILS(-EBADF, mapwright_mapping_close(mapping));
}

static void files(void) {
    mapwright_mapping *mapping, *copy;
    unsigned char bytes[16];
    FAILS(-ENOENT, mapwright_mapping_open("no such file", MAPWRIGHT_ACCESS_READ, 0, 0, &mapping));
    make_file("file", 5 * PAGE);
    FAILS(-EINVAL, mapwright_mapping_open("file", 3, 0, 0, &mapping));
    OK(mapwright_mapping_open("file", MAPWRIGHT_ACCESS_WRITE, 1001, 0, &mapping));
    OK(mapwright_mapping_read_at(mapping, 0, bytes, 16));
    for (size_t at = 0; at < 16; at++) CHECK(bytes[at] == byte_at(1001 + at));
    OK(mapwright_mapping_write_at(mapping, 9, "at 1010", 7));
    OK(mapwright_mapping_flush(mapping, 0, 0));
    CHECK(file_has("file", 1010, "at 1010", 7));

    OK(mapwright_mapping_open("file", MAPWRIGHT_ACCESS_COPY, 0, PAGE, &copy));
    OK(mapwright_mapping_write_at(copy, 0, "private", 7));
    CHECK(!file_has("file", 0, "private", 7));
    OK(mapwright_mapping_discard(copy, 0, 0));
    OK(mapwright_mapping_read_at(copy, 0, bytes, 1));
    CHECK(bytes[0] == byte_at(0));
    OK(mapwright_mapping_close(copy));

    /* A page past the end of a file that somebody cut. */
    CHECK(truncate("file", PAGE) == 0);
    FAILS(MAPWRIGHT_ERR_CHANGED, mapwright_mapping_read_at(mapping, 3 * PAGE, bytes, 8));
    FAILS(MAPWRIGHT_ERR_CHANGED, mapwright_mapping_write_at(mapping, 3 * PAGE, "cut off", 7));
    OK(mapwright_mapping_close(mapping));

    int fd = open("file", O_RDONLY);
    OK(mapwright_mapping_open_fd(fd, MAPWRIGHT_ACCESS_READ, 0, 0, &mapping));
    FAILS(-EACCES, mapwright_mapping_open_fd(fd, MAPWRIGHT_ACCESS_WRITE, 0, 0, &copy));
    CHECK(copy == NULL);
    CHECK(truncate("file", 0) == 0);
    FAILS(-EFAULT, mapwright_mapping_read_at(mapping, 0, bytes, 8)); /* the file is not known any more */
    FAILS(-EACCES, mapwright_mapping_protect(mapping, PROT_READ | PROT_WRITE));
    FAILS(-EACCES, mapwright_mapping_write_at(mapping, 0, "x", 1));
    close(fd);
    OK(mapwright_mapping_close(mapping));
}

int main(void) {
    anonymous();
    files();
    puts("kernel: ok");
    return 0;
}
