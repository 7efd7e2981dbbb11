/* Makes the n-th call of a kind on files below a folder fail, once, or ends the process
at the n-th call that changes files, or some time after it.

Built, preloaded and armed by preloaded.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { READ, WRITE, SYNC, CLOSE, RENAME, OPEN, KINDS };
#define SHORT (-1) /* instead of an error number: half of the bytes */

#define LOGGED 20000

static char folder[4096];
static int kind_armed = -1, error_number, end_signal;
static long wanted, seen[KINDS], all_seen, changes, delay;
/* The kinds and names of the files of the first calls: where calls come from. */
static char names[LOGGED][64];
static int logging;

void faults_arm(const char *below, int kind, long number, int error) {
  strncpy(folder, below, sizeof folder - 1);
  memset(seen, 0, sizeof seen);
  all_seen = changes = end_signal = 0;
  wanted = number;
  error_number = error;
  kind_armed = kind;
  logging = !number;
}

void faults_disarm(void) { folder[0] = 0; }
long faults_seen(void) { return all_seen; }
long faults_changes(void) { return changes; }
const char *faults_name(long call) { return call < LOGGED ? names[call] : ""; }

static void end(void) {
  /* Ctrl-C reaches every process of a terminal, kill -9 one. */
  kill(end_signal == SIGINT ? 0 : getpid(), end_signal);
}

static void *end_later(void *nothing) {
  usleep(delay);
  end();
  return nothing;
}

static void end_after_delay(void) {
  pthread_t thread;
  if (!pthread_create(&thread, 0, end_later, 0)) pthread_detach(thread);
}

void faults_end(const char *below, long number, int number_of_signal, long microseconds) {
  faults_arm(below, -1, number, 0);
  logging = 0;
  end_signal = number_of_signal;
  delay = microseconds;
  if (!number) end_after_delay();
}

static int below(const char *path) {
  size_t size = strlen(folder);
  return size && path && !strncmp(path, folder, size);
}

static __thread char path[4096];

static int of_file(int fd) {
  char link[64];
  if (!folder[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = syscall(SYS_readlink, link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return below(path);
}

static int of_path(const char *given) {
  if (!folder[0] || !given) return 0;
  strncpy(path, given, sizeof path - 1);
  return below(given);
}

/* Whether this call is the one that fails. */
static int fails(int kind, int matters) {
  if (!matters) return 0;
  long number = __atomic_add_fetch(&seen[kind], 1, __ATOMIC_SEQ_CST);
  long any = __atomic_add_fetch(&all_seen, 1, __ATOMIC_SEQ_CST);
  if (logging && any <= LOGGED)
    snprintf(names[any - 1], sizeof *names, "%d %ld %.50s", kind, number,
             path + strlen(folder));
  int changing = kind == WRITE || kind == SYNC || kind == RENAME;
  long change = changing ? __atomic_add_fetch(&changes, 1, __ATOMIC_SEQ_CST) : 0;
  if (end_signal && changing && change == wanted) {
    if (delay) {
      end_after_delay();
    } else {
      if (kind == WRITE) return 1; /* when half of it is written */
      end();
    }
  }
  return kind == kind_armed && number == wanted;
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define MOVE(kind, name, result, parameters, fd, whole, half) \
  result name parameters { \
    REAL(name); \
    if (fails(kind, of_file(fd))) { \
      if (error_number == SHORT || end_signal) { \
        result done = half; \
        if (end_signal) end(); \
        return done; \
      } \
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
MOVE(WRITE, sendfile64, ssize_t, (int fd, int from, off64_t *at, size_t size), fd,
     real(fd, from, at, size), real(fd, from, at, size / 2 + 1))
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
    if (end_signal) end();
    size_t done = error_number == SHORT ? real(from, size, count / 2, stream) : 0;
    errno = error_number == SHORT ? ENOSPC : error_number;
    return done;
  }
  return real(from, size, count, stream);
}

int fflush(FILE *stream) {
  REAL(fflush);
  if (stream && fails(WRITE, of_file(fileno(stream))) && error_number != SHORT) {
    if (end_signal) end();
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

#define PATHS(function, parameters, name, call) \
  int function parameters { \
    REAL(function); \
    if (fails(RENAME, of_path(name)) && error_number != SHORT) { \
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
PATHS(mkdir, (const char *name, mode_t mode), name, real(name, mode))
PATHS(unlink, (const char *name), name, real(name))
PATHS(rmdir, (const char *name), name, real(name))

#define OPENS(function, parameters, name, last, call) \
  int function parameters { \
    REAL(function); \
    va_list rest; \
    va_start(rest, last); \
    mode_t mode = va_arg(rest, mode_t); \
    va_end(rest); \
    if (fails(OPEN, of_path(name)) && error_number != SHORT) { \
      errno = error_number; \
      return -1; \
    } \
    return call; \
  }

OPENS(open64, (const char *name, int flags, ...), name, flags,
      real(name, flags, mode))
OPENS(open, (const char *name, int flags, ...), name, flags, real(name, flags, mode))
OPENS(openat64, (int at, const char *name, int flags, ...), name, flags,
      real(at, name, flags, mode))
