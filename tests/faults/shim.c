/* Stands between a process and libc, and does it harm at the n-th change of files under given folders.
 *
 *     cc -shared -fPIC -O1 -o shim.so shim.c -ldl;  LD_PRELOAD=./shim.so python ...
 *
 * Counted: opening to create or cut, write, fsync, rename, unlink, rmdir, mkdir, ftruncate, link, msync and their kin.
 * `fault_arm` sets the harm; counting begins with it. `fault_count` tells how many changes there were.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NOTHING, KILL, KILL_HALF, FAIL, FAIL_HALF, CLOCK };

static char under[4][PATH_MAX];
static int folders, what, failure, once, log_fd = -1;
static long at;
static atomic_long count;
static long long jump_s, jumped_s;

long fault_count(void) { return count; }

/* paths: folders, with ':' between. log: a file for a line a change, or "". n: which change, from 1.
 * harm: of the enum above. code: the errno of FAIL, the seconds of CLOCK. only_once: FAIL is over after that change. */
void fault_arm(const char *paths, const char *log, long n, int harm, long long code, int only_once) {
    char copy[4 * PATH_MAX];
    snprintf(copy, sizeof copy, "%s", paths);
    folders = 0;
    for (char *part = strtok(copy, ":"); part && folders < 4; part = strtok(NULL, ":"))
        snprintf(under[folders++], PATH_MAX, "%s", part);
    if (*log) log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    at = n, what = harm, failure = (int)code, jump_s = code, once = only_once, jumped_s = 0;
    atomic_store(&count, 0);
}

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }
#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = (__typeof__(&name))next(#name); real; })

static int is_under(const char *path) {
    for (int i = 0; i < folders; i++) {
        size_t length = strlen(under[i]);
        if (!strncmp(path, under[i], length) && (path[length] == '/' || !path[length])) return 1;
    }
    return 0;
}

static const char *path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return path;
}

static const char *full(int dir, const char *name, char *path) {
    if (!name || *name == '/') return name ? name : "";
    char base[PATH_MAX];
    if (dir != AT_FDCWD) path_of(dir, base);
    else if (syscall(SYS_getcwd, base, sizeof base) < 0) *base = 0;
    snprintf(path, PATH_MAX, "%.2000s/%.2000s", base, name);
    return path;
}

/* 0: let it be; 1: half of it only; -1: it fails, errno is set. done: called again after the change. */
static int strike(const char *name, const char *path, int frees, int done) {
    static __thread long mine;
    if (!folders || !is_under(path)) return 0;
    if (done) {
        if (mine == at && what == KILL_HALF) syscall(SYS_kill, syscall(SYS_getpid), SIGKILL), pause();
        return 0;
    }
    long n = mine = ++count;
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld %s %s\n", n, name, path);
        syscall(SYS_write, log_fd, line, length);
    }
    if (n == at && what == KILL) syscall(SYS_kill, syscall(SYS_getpid), SIGKILL), pause();
    if (n == at && what == CLOCK) jumped_s = jump_s;
    if (n == at && (what == KILL_HALF || what == FAIL_HALF)) return 1;
    int full_disk = failure == ENOSPC || failure == EDQUOT;
    if ((what == FAIL || what == FAIL_HALF) && at > 0 && (n == at || (n > at && !once)) && !(frees && full_disk)) {
        errno = failure;
        return -1;
    }
    return 0;
}

#define CHANGE(kind, name, path, frees, call) do { \
    const char *path_ = (path); \
    if (strike(name, path_, frees, 0) < 0) return -1; \
    kind result_ = (call); \
    int errno_ = errno; \
    strike(name, path_, frees, 1); \
    errno = errno_; \
    return result_; } while (0)

/* a write that is struck half writes half of its bytes, as one does on a disk with so much room */
#define WRITING(name, fd, size, call) do { \
    char path[PATH_MAX]; \
    if (!folders) return call; \
    path_of(fd, path); \
    int struck = strike(name, path, 0, 0); \
    if (struck < 0) return -1; \
    if (struck > 0) size /= 2; \
    ssize_t result_ = (call); \
    int errno_ = errno; \
    strike(name, path, 0, 1); \
    errno = errno_; \
    return result_; } while (0)

#define OPEN(function, dir, arguments, ...) \
    int function arguments { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } \
        char path[PATH_MAX]; \
        if (!folders || !(flags & (O_CREAT | O_TRUNC))) return REAL(function)(__VA_ARGS__); \
        CHANGE(int, "open", full(dir, name, path), 0, REAL(function)(__VA_ARGS__)); \
    }

OPEN(open, AT_FDCWD, (const char *name, int flags, ...), name, flags, mode)
OPEN(open64, AT_FDCWD, (const char *name, int flags, ...), name, flags, mode)
OPEN(openat, dir, (int dir, const char *name, int flags, ...), dir, name, flags, mode)
OPEN(openat64, dir, (int dir, const char *name, int flags, ...), dir, name, flags, mode)

ssize_t write(int fd, const void *data, size_t size) { WRITING("write", fd, size, REAL(write)(fd, data, size)); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t to) { WRITING("pwrite", fd, size, REAL(pwrite)(fd, data, size, to)); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t to) { WRITING("pwrite", fd, size, REAL(pwrite64)(fd, data, size, to)); }
ssize_t writev(int fd, const struct iovec *parts, int size) { WRITING("writev", fd, size, REAL(writev)(fd, parts, size)); }
ssize_t copy_file_range(int from, off64_t *a, int fd, off64_t *b, size_t size, unsigned flags) {
    WRITING("copy_file_range", fd, size, REAL(copy_file_range)(from, a, fd, b, size, flags));
}
ssize_t sendfile(int fd, int from, off_t *a, size_t size) { WRITING("sendfile", fd, size, REAL(sendfile)(fd, from, a, size)); }
ssize_t sendfile64(int fd, int from, off64_t *a, size_t size) { WRITING("sendfile", fd, size, REAL(sendfile64)(fd, from, a, size)); }

#define BY_FD(function, frees, arguments, ...) \
    int function arguments { \
        char path[PATH_MAX]; \
        if (!folders) return REAL(function)(__VA_ARGS__); \
        CHANGE(int, #function, path_of(fd, path), frees, REAL(function)(__VA_ARGS__)); \
    }
BY_FD(fsync, 0, (int fd), fd)
BY_FD(fdatasync, 0, (int fd), fd)
BY_FD(ftruncate, 0, (int fd, off_t size), fd, size)
BY_FD(ftruncate64, 0, (int fd, off64_t size), fd, size)
BY_FD(posix_fallocate, 0, (int fd, off_t from, off_t size), fd, from, size)

#define BY_NAME(function, dir, name, frees, arguments, ...) \
    int function arguments { \
        char path[PATH_MAX]; \
        if (!folders) return REAL(function)(__VA_ARGS__); \
        CHANGE(int, #function, full(dir, name, path), frees, REAL(function)(__VA_ARGS__)); \
    }
BY_NAME(rename, AT_FDCWD, to, 0, (const char *from, const char *to), from, to)
BY_NAME(renameat, dir_to, to, 0, (int dir, const char *from, int dir_to, const char *to), dir, from, dir_to, to)
BY_NAME(renameat2, dir_to, to, 0, (int dir, const char *from, int dir_to, const char *to, unsigned flags), dir, from, dir_to, to, flags)
BY_NAME(link, AT_FDCWD, to, 0, (const char *from, const char *to), from, to)
BY_NAME(symlink, AT_FDCWD, to, 0, (const char *from, const char *to), from, to)
BY_NAME(unlink, AT_FDCWD, name, 1, (const char *name), name)
BY_NAME(unlinkat, dir, name, 1, (int dir, const char *name, int flags), dir, name, flags)
BY_NAME(rmdir, AT_FDCWD, name, 1, (const char *name), name)
BY_NAME(mkdir, AT_FDCWD, name, 0, (const char *name, mode_t mode), name, mode)
BY_NAME(mkdirat, dir, name, 0, (int dir, const char *name, mode_t mode), dir, name, mode)

/* a mapping that is written through to its file: no path is at hand, so all of them count */
int msync(void *start, size_t size, int flags) { CHANGE(int, "msync", folders ? under[0] : "", 0, REAL(msync)(start, size, flags)); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(clock_gettime)(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += jumped_s;
    return result;
}
int gettimeofday(struct timeval *now, void *zone) {
    int result = REAL(gettimeofday)(now, zone);
    if (!result) now->tv_sec += jumped_s;
    return result;
}
time_t time(time_t *to) {
    time_t now = REAL(time)(NULL) + jumped_s;
    if (to) *to = now;
    return now;
}
