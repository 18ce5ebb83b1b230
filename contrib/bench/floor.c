// What the kernel alone takes for a RUN: clone with four namespaces, an overlay mount, pivot_root, exec, wait.
// No /proc, /dev, /sys, cgroup, seccomp, capabilities, snapshot or record: nothing that makes it safe or keeps it.
//
//   cc -O2 -o floor contrib/bench/floor.c && ./floor DIRECTORY PROGRAM [ROUNDS]
//
// DIRECTORY is where the layers are made; PROGRAM is a static program, which becomes /true in the lower one.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void must(int ok, const char *what) {
    if (!ok) {
        fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
        _exit(1);
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    must(argc >= 3, "usage: floor DIRECTORY PROGRAM [ROUNDS]");
    int rounds = argc > 3 ? atoi(argv[3]) : 200;
    must(rounds > 0, "ROUNDS");
    must(chdir(argv[1]) == 0, argv[1]);
    must(mkdir("lower", 0755) == 0 && mkdir("root", 0755) == 0, "make directories");
    char command[4096];
    snprintf(command, sizeof command, "cp '%s' lower/true", argv[2]);
    must(system(command) == 0, command);
    double *times = calloc(rounds, sizeof *times);
    for (int round = 0; round < rounds; round++) {
        char upper[64], work[64], options[256];
        double begun = now();
        snprintf(upper, sizeof upper, "upper%d", round);
        snprintf(work, sizeof work, "work%d", round);
        must(mkdir(upper, 0755) == 0 && mkdir(work, 0755) == 0, "make layer");
        snprintf(options, sizeof options, "lowerdir=lower,upperdir=%s,workdir=%s,volatile", upper, work);
        pid_t pid = syscall(SYS_clone, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | SIGCHLD, 0, 0, 0, 0);
        must(pid >= 0, "clone");
        if (pid == 0) {
            must(mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL) == 0, "make mounts private");
            must(mount("overlay", "root", "overlay", 0, options) == 0, "mount overlay");
            must(chdir("root") == 0, "chdir");
            must(syscall(SYS_pivot_root, ".", ".") == 0, "pivot_root");
            must(umount2(".", MNT_DETACH) == 0, "unmount");
            char *arguments[] = {"/true", NULL};
            execve("/true", arguments, arguments + 1);
            must(0, "exec");
        }
        int status;
        must(waitpid(pid, &status, 0) == pid && status == 0, "wait");
        times[round] = now() - begun;
    }
    qsort(times, rounds, sizeof *times, ascending);
    printf("median %.3f ms, lowest %.3f ms, nine of ten below %.3f ms\n", times[rounds / 2], times[0],
           times[rounds * 9 / 10]);
    return 0;
}
