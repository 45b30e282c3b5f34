/* Stands between a process and its storage (LD_PRELOAD): counts the calls that change what lies below one
 * folder, and at the n-th kills the process, or lets the call fail, or writes a part. Only for one thread. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, KILL_PARTIAL, FAIL, FAIL_ON, SHORT };

static char folder[PATH_MAX];
static long armed, seen, target;
static int mode, failure, record = -1;
static char hit_kind[16];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Below `path`, at call number `n` (from 1): KILL before it, KILL_PARTIAL after half of a write, FAIL it once
 * with `error`, FAIL_ON it and all later ones, SHORT: write half. Calls are written to descriptor `log`:
 * kind, path, second path, inode. */
void shim_arm(const char *path, long n, int how, int error, int log) {
    snprintf(folder, sizeof folder, "%s", path);
    target = n, mode = how, failure = error, record = log, seen = 0, hit_kind[0] = 0;
    armed = 1;
}

long shim_disarm(void) { armed = 0; return seen; }

const char *shim_hit(void) { return hit_kind; }

static int below(const char *path) {
    size_t length = strlen(folder);
    return armed && path && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static const char *at(int where, const char *path, char *buffer) {
    char link[64], base[PATH_MAX];
    if (!armed || !path || path[0] == '/') return path;
    if (where == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return NULL;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", where);
        ssize_t length = readlink(link, base, sizeof base - 1);
        if (length < 0) return NULL;
        base[length] = 0;
    }
    return snprintf(buffer, PATH_MAX, "%s/%s", base, path) < PATH_MAX ? buffer : NULL;
}

static const char *of(int descriptor, char *buffer) {
    char link[64];
    if (!armed || descriptor == record) return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, buffer, PATH_MAX - 1);
    if (length < 0) return NULL;
    buffer[length] = 0;
    return buffer;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Count one call. 0: go on; 1: fail with errno set; 2: write a part and go on; 3: write a part and die. */
static int call(const char *kind, const char *path, const char *other, int writes) {
    if (!below(path) && !below(other)) return 0;
    seen++;
    struct stat known;
    unsigned long inode = path && !lstat(path, &known) ? known.st_ino : 0;
    if (record >= 0) dprintf(record, "%s\t%s\t%s\t%lu\n", kind, path, other ? other : "", inode);
    int later = mode == FAIL_ON && seen > target;
    if (mode == COUNT || (seen != target && !later)) return 0;
    if (!later) snprintf(hit_kind, sizeof hit_kind, "%s", kind);
    if (mode == KILL) {
        if (record >= 0) dprintf(record, "hit\t%s\t\t0\n", kind);
        die();
    }
    if (mode == KILL_PARTIAL) {
        if (record >= 0) dprintf(record, "hit\t%s\t\t0\n", kind);
        if (!writes) die();
        return 3;
    }
    if (mode == SHORT) return writes ? 2 : 0;
    errno = failure;
    return 1;
}

#define GUARD(kind, path, other) \
    do { \
        if (call(kind, path, other, 0)) return -1; \
    } while (0)

#define PARTLY(kind, whole, part) \
    do { \
        char name[PATH_MAX]; \
        int what = call(kind, of(descriptor, name), NULL, 1); \
        if (what == 1) return -1; \
        if (!what) return whole; \
        ssize_t written = part; \
        if (what == 3) die(); \
        return written; \
    } while (0)

static size_t half(size_t count) { return count > 1 ? count / 2 : count; }

ssize_t write(int descriptor, const void *data, size_t count) {
    PARTLY("write", REAL(write)(descriptor, data, count), REAL(write)(descriptor, data, half(count)));
}

ssize_t writev(int descriptor, const struct iovec *data, int count) {
    PARTLY("writev", REAL(writev)(descriptor, data, count),
           REAL(write)(descriptor, data[0].iov_base, half(data[0].iov_len)));
}

ssize_t pwrite(int descriptor, const void *data, size_t count, off_t offset) {
    PARTLY("pwrite", REAL(pwrite)(descriptor, data, count, offset),
           REAL(pwrite)(descriptor, data, half(count), offset));
}

ssize_t pwrite64(int descriptor, const void *data, size_t count, off64_t offset) {
    PARTLY("pwrite", REAL(pwrite64)(descriptor, data, count, offset),
           REAL(pwrite64)(descriptor, data, half(count), offset));
}

#define ON_DESCRIPTOR(kind, name, parameters, ...) \
    int name parameters { \
        char path[PATH_MAX]; \
        GUARD(kind, of(descriptor, path), NULL); \
        return REAL(name)(__VA_ARGS__); \
    }

ON_DESCRIPTOR("fsync", fsync, (int descriptor), descriptor)
ON_DESCRIPTOR("fdatasync", fdatasync, (int descriptor), descriptor)
ON_DESCRIPTOR("ftruncate", ftruncate, (int descriptor, off_t size), descriptor, size)
ON_DESCRIPTOR("ftruncate", ftruncate64, (int descriptor, off64_t size), descriptor, size)
ON_DESCRIPTOR("chmod", fchmod, (int descriptor, mode_t bits), descriptor, bits)

/* It returns an error number and leaves errno alone. */
int posix_fallocate64(int descriptor, off64_t offset, off64_t size) {
    char path[PATH_MAX];
    if (call("fallocate", of(descriptor, path), NULL, 0)) return failure;
    return REAL(posix_fallocate64)(descriptor, offset, size);
}

#define ON_PATH(kind, name, parameters, where, ...) \
    int name parameters { \
        char buffer[PATH_MAX]; \
        GUARD(kind, at(where, path, buffer), NULL); \
        return REAL(name)(__VA_ARGS__); \
    }

ON_PATH("mkdir", mkdir, (const char *path, mode_t bits), AT_FDCWD, path, bits)
ON_PATH("mkdir", mkdirat, (int where, const char *path, mode_t bits), where, where, path, bits)
ON_PATH("rmdir", rmdir, (const char *path), AT_FDCWD, path)
ON_PATH("unlink", unlink, (const char *path), AT_FDCWD, path)
ON_PATH("chmod", chmod, (const char *path, mode_t bits), AT_FDCWD, path, bits)
ON_PATH("chmod", fchmodat, (int where, const char *path, mode_t bits, int flags), where, where, path, bits, flags)

int unlinkat(int where, const char *path, int flags) {
    char buffer[PATH_MAX];
    GUARD(flags & AT_REMOVEDIR ? "rmdir" : "unlink", at(where, path, buffer), NULL);
    return REAL(unlinkat)(where, path, flags);
}

#define ON_TWO(name, parameters, from, to, ...) \
    int name parameters { \
        char one[PATH_MAX], two[PATH_MAX]; \
        GUARD("rename", at(from, old, one), at(to, new, two)); \
        return REAL(name)(__VA_ARGS__); \
    }

ON_TWO(rename, (const char *old, const char *new), AT_FDCWD, AT_FDCWD, old, new)
ON_TWO(renameat, (int from, const char *old, int to, const char *new), from, to, from, old, to, new)
ON_TWO(renameat2, (int from, const char *old, int to, const char *new, unsigned flags), from, to, from, old, to,
       new, flags)

int link(const char *old, const char *new) {
    char buffer[PATH_MAX];
    GUARD("link", at(AT_FDCWD, new, buffer), old);
    return REAL(link)(old, new);
}

int linkat(int from, const char *old, int to, const char *new, int flags) {
    char one[PATH_MAX], two[PATH_MAX];
    GUARD("link", at(to, new, two), at(from, old, one));
    return REAL(linkat)(from, old, to, new, flags);
}

#define OPEN(name, parameters, where, ...) \
    int name parameters { \
        char buffer[PATH_MAX]; \
        mode_t bits = 0; \
        if (flags & (O_CREAT | __O_TMPFILE)) { \
            va_list more; \
            va_start(more, flags); \
            bits = va_arg(more, mode_t); \
            va_end(more); \
            GUARD("create", at(where, path, buffer), NULL); \
        } \
        return REAL(name)(__VA_ARGS__, flags, bits); \
    }

OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(openat, (int where, const char *path, int flags, ...), where, where, path)
OPEN(openat64, (int where, const char *path, int flags, ...), where, where, path)
