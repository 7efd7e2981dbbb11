/* Makes the n-th call of a kind on files below a folder fail, once.

Built and preloaded by injected_faults.py, which arms it through ctypes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { READ, WRITE, SYNC, CLOSE, RENAME, OPEN, KINDS };
#define SHORT (-1) /* instead of an error number: half of the bytes */

static char folder[4096];
static int kind_armed = -1, error_number;
static long wanted, seen[KINDS];

void faults_arm(const char *below, int kind, long number, int error) {
  strncpy(folder, below, sizeof folder - 1);
  memset(seen, 0, sizeof seen);
  wanted = number;
  error_number = error;
  kind_armed = kind;
}

void faults_disarm(void) { folder[0] = 0; }
long faults_seen(int kind) { return seen[kind]; }

static int below(const char *path) {
  size_t size = strlen(folder);
  return size && path && !strncmp(path, folder, size);
}

static int of_file(int fd) {
  char link[64], path[4096];
  if (!folder[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = syscall(SYS_readlink, link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return below(path);
}

/* Whether this call is the one that fails. */
static int fails(int kind, int matters) {
  if (!matters) return 0;
  long number = __atomic_add_fetch(&seen[kind], 1, __ATOMIC_SEQ_CST);
  return kind == kind_armed && number == wanted;
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define MOVE(kind, name, result, parameters, fd, whole, half) \
  result name parameters { \
    REAL(name); \
    if (fails(kind, of_file(fd))) { \
      if (error_number == SHORT) return half; \
      errno = error_number; \
      return -1; \
    } \
    return whole; \
  }

MOVE(READ, read, ssize_t, (int fd, void *to, size_t size), fd,
     real(fd, to, size), real(fd, to, size / 2 + 1))
MOVE(READ, pread64, ssize_t, (int fd, void *to, size_t size, off64_t at), fd,
     real(fd, to, size, at), real(fd, to, size / 2 + 1, at))
MOVE(WRITE, write, ssize_t, (int fd, const void *from, size_t size), fd,
     real(fd, from, size), real(fd, from, size / 2 + 1))
MOVE(WRITE, pwrite64, ssize_t, (int fd, const void *from, size_t size, off64_t at),
     fd, real(fd, from, size, at), real(fd, from, size / 2 + 1, at))
MOVE(WRITE, writev, ssize_t, (int fd, const struct iovec *from, int count), fd,
     real(fd, from, count), real(fd, from, 1))
MOVE(SYNC, fsync, int, (int fd), fd, real(fd), real(fd))
MOVE(SYNC, fdatasync, int, (int fd), fd, real(fd), real(fd))

int close(int fd) {
  REAL(close);
  int failing = fails(CLOSE, of_file(fd));
  int result = real(fd); /* Linux closes it even where it reports an error. */
  if (!failing || error_number == SHORT) return result;
  errno = error_number;
  return -1;
}

/* The C library writes its streams by calls of its own, which are not seen above. */
size_t fwrite(const void *from, size_t size, size_t count, FILE *stream) {
  REAL(fwrite);
  if (fails(WRITE, of_file(fileno(stream)))) {
    size_t done = error_number == SHORT ? real(from, size, count / 2, stream) : 0;
    errno = error_number == SHORT ? ENOSPC : error_number;
    return done;
  }
  return real(from, size, count, stream);
}

int fflush(FILE *stream) {
  REAL(fflush);
  if (stream && fails(WRITE, of_file(fileno(stream))) && error_number != SHORT) {
    errno = error_number;
    return EOF;
  }
  return real(stream);
}

int fclose(FILE *stream) {
  REAL(fclose);
  int failing = fails(CLOSE, of_file(fileno(stream)));
  int result = real(stream);
  if (!failing || error_number == SHORT) return result;
  errno = error_number;
  return EOF;
}

size_t fread(void *to, size_t size, size_t count, FILE *stream) {
  REAL(fread);
  if (fails(READ, of_file(fileno(stream)))) {
    if (error_number == SHORT) return real(to, size, count / 2, stream);
    errno = error_number;
    return 0;
  }
  return real(to, size, count, stream);
}

#define PATHS(name, parameters, path, call) \
  int name parameters { \
    REAL(name); \
    if (fails(RENAME, below(path)) && error_number != SHORT) { \
      errno = error_number; \
      return -1; \
    } \
    return call; \
  }

PATHS(rename, (const char *from, const char *to), to, real(from, to))
PATHS(renameat, (int a, const char *from, int b, const char *to), to,
      real(a, from, b, to))
PATHS(renameat2, (int a, const char *from, int b, const char *to, unsigned how), to,
      real(a, from, b, to, how))
PATHS(mkdir, (const char *path, mode_t mode), path, real(path, mode))
PATHS(unlink, (const char *path), path, real(path))
PATHS(rmdir, (const char *path), path, real(path))

#define OPENS(name, parameters, path, last, call) \
  int name parameters { \
    REAL(name); \
    va_list rest; \
    va_start(rest, last); \
    mode_t mode = va_arg(rest, mode_t); \
    va_end(rest); \
    if (fails(OPEN, below(path)) && error_number != SHORT) { \
      errno = error_number; \
      return -1; \
    } \
    return call; \
  }

OPENS(open64, (const char *path, int flags, ...), path, flags,
      real(path, flags, mode))
OPENS(open, (const char *path, int flags, ...), path, flags, real(path, flags, mode))
OPENS(openat64, (int at, const char *path, int flags, ...), path, flags,
      real(at, path, flags, mode))
