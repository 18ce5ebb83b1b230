// Writes many files, as a program in a RUN does; what it takes itself is little, so that a builder's part shows.
//
//   cc -O2 -static -o write-files contrib/bench/write_files.c && ./write-files DIRECTORY COUNT BYTES SEED
//
// DIRECTORY becomes one of COUNT files of BYTES on average, a hundred in each directory. Another SEED makes other content: three parts of text
// and one of what does not compress, as in real programs; gzip makes a half of it. It comes again only after 8 MiB, which is further than gzip
// and zstd look.
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { POOL = 8 << 20, PART = 4096, WORDS = 4096 };

static void must(int ok, const char *what) {
    if (!ok) {
        fprintf(stderr, "write-files: %s: %s\n", what, strerror(errno));
        exit(1);
    }
}

static uint64_t state;

static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

int main(int argc, char **argv) {
    must(argc == 5, "usage: write-files DIRECTORY COUNT BYTES SEED");
    long count = atol(argv[2]), bytes = atol(argv[3]);
    must(count > 0 && bytes > 0 && bytes < POOL / 2, "COUNT and BYTES");
    for (const char *at = argv[4]; *at; at++) state = (state ^ (unsigned char)*at) * 0x100000001b3 + 0x9e3779b97f4a7c15;
    state |= 1;
    static char words[WORDS][8], pool[POOL];
    for (int word = 0; word < WORDS; word++)
        for (int at = 0; at < 8; at++) words[word][at] = at < 2 + word % 6 ? 'a' + next() % 26 : ' ';
    for (long at = 0; at < POOL; at += PART) {
        for (long in = at; in < at + PART; in += 8) {
            uint64_t value = next();
            // Of the words, some come often.
            memcpy(pool + in, at / PART % 4 ? words[(value >> 8) % (value & 3 ? WORDS / 16 : WORDS)] : (char *)&value, 8);
        }
    }
    must(mkdir(argv[1], 0755) == 0 && chdir(argv[1]) == 0, argv[1]);
    long from = 0;
    for (long number = 0; number < count; number++) {
        char name[64];
        if (number % 100 == 0) {
            snprintf(name, sizeof name, "d%04ld", number / 100);
            must(mkdir(name, 0755) == 0, name);
        }
        snprintf(name, sizeof name, "d%04ld/f%06ld", number / 100, number);
        int file = open(name, O_WRONLY | O_CREAT | O_EXCL, 0644);
        must(file >= 0, name);
        // From a half to one and a half of the average.
        long length = bytes - bytes / 2 + number * 7919 % (bytes / 2 * 2 + 1);
        if (from + length > POOL) from = number % 4096;
        // No two are the same.
        memcpy(pool + from, &number, length < 8 ? length : 8);
        must(write(file, pool + from, length) == length && close(file) == 0, name);
        from += length;
    }
    return 0;
}
