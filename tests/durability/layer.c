/*
 * A file layer between a broker and its disk, loaded with LD_PRELOAD.
 *
 * Every change below ROOST_LAYER_DIR is appended with its data to the file ROOST_LAYER_JOURNAL, so that the directory can
 * be built again as a power cut at any moment could have left it; `image.py` reads it. The file ROOST_LAYER_CONTROL, read
 * before each operation, says which faults to play:
 *
 *   write=EIO | write=ENOSPC   half of a write is done, then it fails
 *   sync=EIO                   fsync and fdatasync fail, of files and of folders
 *   names=EIO                  rename and unlink fail
 *   one_in=N                   of the operations that could fail one in N does
 *   short                      a write does half of its work and says so
 *   delay=MICROSECONDS         each sync takes so much longer
 *   die                        the process is killed before its next change, with no change half noted
 *
 * An operation and its note are one under one lock: who has been told of an operation finds it in the journal, and the
 * journal's order is the order in which things happened. What changes files in a way that is not understood is noted as
 * '?', and makes the reader refuse the journal rather than believe half of it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS 65536
enum { CREATED = 1, TRUNCATED = 2 };

struct note {
    uint32_t magic, op; int32_t fd, error;
    uint64_t at;
    uint32_t name_len, data_len;
};

struct faults {
    int write, sync, names, one_in, is_short, die, delay_us;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char dir[4096], parent[4096], control[4096];
static size_t dir_len;
static int journal = -1;
static unsigned chances;
static unsigned char watched[FDS];

/* The next definition of a name, looked up once: a call of the first one must not come back here. */
#define NEXT(name) \
    static __typeof__(name) *next; \
    if (!next) \
        next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define PLAIN(result, mine, name, types, values) \
    static result mine types { \
        NEXT(name); \
        return next values; \
    }
PLAIN(ssize_t, plain_write, write, (int fd, const void *bytes, size_t n), (fd, bytes, n))
PLAIN(ssize_t, plain_pwrite, pwrite64, (int fd, const void *bytes, size_t n, off_t at), (fd, bytes, n, at))
PLAIN(ssize_t, plain_writev, writev, (int fd, const struct iovec *parts, int n), (fd, parts, n))
PLAIN(int, plain_open, open64, (const char *path, int flags, mode_t mode), (path, flags, mode))
PLAIN(int, plain_close, close, (int fd), (fd))

__attribute__((constructor)) static void begin(void) {
    const char *d = getenv("ROOST_LAYER_DIR"), *j = getenv("ROOST_LAYER_JOURNAL"), *c = getenv("ROOST_LAYER_CONTROL");
    if (!d || !j || !c || d[0] != '/')
        return;
    snprintf(dir, sizeof dir, "%s", d);
    snprintf(parent, sizeof parent, "%s", d);
    snprintf(control, sizeof control, "%s", c);
    *strrchr(parent, '/') = 0;
    dir_len = strlen(dir);
    journal = plain_open(j, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

/* A journal that has a hole proves nothing: without room for it the process ends. */
static void append(char op, int fd, int error, uint64_t at, const char *name, const void *data, size_t len) {
    struct note n = {0x59414c52, (uint32_t)op, fd, error, at, name ? (uint32_t)strlen(name) : 0, (uint32_t)len};
    struct iovec parts[3] = {{&n, sizeof n}, {(void *)name, n.name_len}, {(void *)data, len}};
    if (plain_writev(journal, parts, 3) != (ssize_t)(sizeof n + n.name_len + len))
        abort();
}

/* A process is introduced by its first change: those that leave the directory alone (a shell, `timeout`) never are. */
static void note(char op, int fd, int error, uint64_t at, const char *name, const void *data, size_t len) {
    static pid_t known;
    int before = errno;
    if (known != getpid()) {
        known = getpid();
        append('B', -1, 0, (uint64_t)known, NULL, NULL, 0);
    }
    append(op, fd, error, at, name, data, len);
    errno = before;
}

/* The name below the directory; "" is the directory, ".." its parent, whose sync makes the directory's name safe. */
static const char *below(const char *path) {
    if (journal < 0 || !path)
        return NULL;
    if (strcmp(path, parent) == 0)
        return "..";
    if (strncmp(path, dir, dir_len) != 0 || (path[dir_len] && path[dir_len] != '/'))
        return NULL;
    return path[dir_len] ? path + dir_len + 1 : path + dir_len;
}

static int is_watched(int fd) { return fd >= 0 && fd < FDS && watched[fd]; }
static void watch(int fd, int on) { if (fd >= 0 && fd < FDS) watched[fd] = (unsigned char)on; }

static int number_of(const char *words, const char *key) {
    return strstr(words, key) ? atoi(strstr(words, key) + strlen(key)) : 0;
}

static struct faults wanted(void) {
    struct faults f = {0};
    char words[256] = "";
    int before = errno, fd = plain_open(control, O_RDONLY | O_CLOEXEC, 0);
    if (fd >= 0) {
        ssize_t n = read(fd, words, sizeof words - 1);
        words[n > 0 ? n : 0] = 0;
        plain_close(fd);
    }
    errno = before;
    f.write = strstr(words, "write=EIO") ? EIO : strstr(words, "write=ENOSPC") ? ENOSPC : 0;
    f.sync = strstr(words, "sync=EIO") ? EIO : 0;
    f.names = strstr(words, "names=EIO") ? EIO : 0;
    f.is_short = strstr(words, "short") != NULL;
    f.die = strstr(words, "die") != NULL;
    f.one_in = number_of(words, "one_in=");
    f.delay_us = number_of(words, "delay=");
    return f;
}

static struct faults enter(void) {
    struct faults f = wanted();
    pthread_mutex_lock(&lock);
    if (f.die)
        kill(getpid(), SIGKILL);
    while (f.die)
        pause();
    return f;
}

static int leave(int result) {
    pthread_mutex_unlock(&lock);
    return result;
}

/* Does this operation fail? Called only for those that a fault is wanted for. */
static int strikes(const struct faults *f, int error) {
    chances = chances * 1103515245 + 12345;
    return error && (f->one_in < 2 || (chances >> 16) % (unsigned)f->one_in == 0);
}

/* ---- opening and closing */

static int any_open(const char *path, int flags, mode_t mode) {
    const char *name = below(path);
    struct stat st;
    if (name)
        enter();
    int before = errno, there = name && stat(path, &st) == 0;
    errno = before;
    int fd = plain_open(path, flags, mode);
    watch(fd, name != NULL);
    if (name && fd >= 0)
        note('O', fd, 0, there ? (flags & O_TRUNC ? TRUNCATED : 0) : CREATED, name, NULL, 0);
    return name ? leave(fd) : fd;
}

static int open_at(int at, const char *path, int flags, mode_t mode) {
    NEXT(openat64);
    if (at == AT_FDCWD || path[0] == '/')
        return any_open(path, flags, mode);
    if (is_watched(at))
        note('?', at, 0, 0, "openat", NULL, 0);
    return next(at, path, flags, mode);
}

/* Where no mode is given nobody looks at the one that is passed on. */
#define OPEN(name, at, ...) \
    int name(__VA_ARGS__, int flags, ...) { \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        return open_at(at, path, flags, mode); \
    }
OPEN(open, AT_FDCWD, const char *path)
OPEN(open64, AT_FDCWD, const char *path)
OPEN(openat, at, int at, const char *path)
OPEN(openat64, at, int at, const char *path)

int close(int fd) {
    if (!is_watched(fd))
        return plain_close(fd);
    enter();
    watch(fd, 0);
    note('C', fd, 0, 0, NULL, NULL, 0);
    return leave(plain_close(fd));
}

/* ---- contents */

/* One write, at a place or (at < 0) where the descriptor stands. */
static ssize_t written(int fd, const void *bytes, size_t n, off_t at) {
    struct faults f = enter();
    int error = n && strikes(&f, f.write) ? f.write : 0;
    size_t part = (error || f.is_short) && n > 1 ? n / 2 : n;
    ssize_t done = at < 0 ? plain_write(fd, bytes, part) : plain_pwrite(fd, bytes, part, at);
    int before = errno;
    if (done > 0)
        note('W', fd, error, (uint64_t)(at < 0 ? lseek(fd, 0, SEEK_CUR) - done : at), NULL, bytes, (size_t)done);
    pthread_mutex_unlock(&lock);
    errno = error ? error : before;
    return error ? -1 : done;
}

ssize_t write(int fd, const void *bytes, size_t n) {
    return is_watched(fd) ? written(fd, bytes, n, -1) : plain_write(fd, bytes, n);
}

ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at) {
    return is_watched(fd) ? written(fd, bytes, n, at) : plain_pwrite(fd, bytes, n, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) { return pwrite64(fd, bytes, n, at); }

static int synced(int fd, int (*sync)(int)) {
    usleep((useconds_t)wanted().delay_us);
    struct faults f = enter();
    int error = strikes(&f, f.sync) ? f.sync : 0;
    int result = error ? -1 : sync(fd);
    if (!error && result)
        error = errno;
    note('S', fd, error, 0, NULL, NULL, 0);
    leave(0);
    if (result)
        errno = error;
    return result;
}

#define SYNC(name) \
    int name(int fd) { \
        NEXT(name); \
        return is_watched(fd) ? synced(fd, next) : next(fd); \
    }
SYNC(fsync)
SYNC(fdatasync)

int ftruncate64(int fd, off64_t len) {
    NEXT(ftruncate64);
    if (!is_watched(fd))
        return next(fd, len);
    enter();
    int result = next(fd, len);
    if (!result)
        note('T', fd, 0, (uint64_t)len, NULL, NULL, 0);
    return leave(result);
}

int ftruncate(int fd, off_t len) { return ftruncate64(fd, len); }

/* ---- names */

int rename(const char *from, const char *to) {
    NEXT(rename);
    const char *a = below(from), *b = below(to);
    if (!a && !b)
        return next(from, to);
    struct faults f = enter();
    int fails = strikes(&f, f.names), result = fails ? -1 : next(from, to);
    if (fails)
        errno = f.names;
    else if (!result)
        note(a && b ? 'R' : '?', -1, 0, 0, a ? a : "rename", b, b ? strlen(b) : 0);
    return leave(result);
}

static int named(char op, const char *path, int (*change)(const char *)) {
    const char *name = below(path);
    if (!name)
        return change(path);
    struct faults f = enter();
    int fails = strikes(&f, f.names), result = fails ? -1 : change(path);
    if (fails)
        errno = f.names;
    else if (!result)
        note(op, -1, 0, 0, name, NULL, 0);
    return leave(result);
}

int unlink(const char *path) {
    NEXT(unlink);
    return named('U', path, next);
}

int rmdir(const char *path) {
    NEXT(rmdir);
    return named('?', path, next);
}

int mkdir(const char *path, mode_t mode) {
    NEXT(mkdir);
    const char *name = below(path);
    if (!name)
        return next(path, mode);
    enter();
    int result = next(path, mode);
    if (!result)
        note('M', -1, 0, 0, name, NULL, 0);
    return leave(result);
}

/* ---- what nobody here should do to a file of the directory */

#define REFUSED(result, name, fd, types, values) \
    result name types { \
        NEXT(name); \
        if (is_watched(fd)) \
            note('?', fd, 0, 0, #name, NULL, 0); \
        return next values; \
    }
REFUSED(int, dup, fd, (int fd), (fd))
REFUSED(int, fallocate, fd, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n))
REFUSED(int, posix_fallocate, fd, (int fd, off_t at, off_t n), (fd, at, n))
REFUSED(ssize_t, writev, fd, (int fd, const struct iovec *v, int n), (fd, v, n))
REFUSED(ssize_t, pwritev, fd, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at))
REFUSED(ssize_t, sendfile, to, (int to, int fd, off_t *at, size_t n), (to, fd, at, n))
REFUSED(int, unlinkat, fd, (int fd, const char *path, int flags), (fd, path, flags))
REFUSED(void *, mmap64, (prot & PROT_WRITE && flags & MAP_SHARED ? fd : -1),
        (void *to, size_t n, int prot, int flags, int fd, off64_t at), (to, n, prot, flags, fd, at))

int link(const char *from, const char *to) {
    NEXT(link);
    if (below(from) || below(to))
        note('?', -1, 0, 0, "link", NULL, 0);
    return next(from, to);
}
