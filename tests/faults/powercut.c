/* A power cut, and a full disk, for one process: LD_PRELOAD.
 *
 * Each fsync and fdatasync that succeeds is noted in the file POWERCUT_JOURNAL: inode and length that the file had when it began. What is behind
 * that length is what a power cut may take; powercut.py takes all of it.
 * While the file POWERCUT_FULL exists, writes to regular files fail with ENOSPC.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_regular(int fd, struct stat *about) { return fstat(fd, about) == 0 && S_ISREG(about->st_mode); }

static int is_full(int fd) {
  struct stat about;
  const char *flag = getenv("POWERCUT_FULL");
  return flag && access(flag, F_OK) == 0 && is_regular(fd, &about);
}

static void note(const struct stat *about) {
  static int journal = -1;
  const char *path = getenv("POWERCUT_JOURNAL");
  char line[64];
  if (journal < 0 && path) journal = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (journal < 0) return;
  int length = snprintf(line, sizeof line, "%llu %lld\n", (unsigned long long)about->st_ino, (long long)about->st_size);
  ssize_t (*real_write)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
  if (real_write(journal, line, (size_t)length) != length) abort();
}

static int synced(int (*real)(int), int fd) {
  struct stat about;
  int regular = is_regular(fd, &about);
  int result = real(fd);
  int error = errno;
  if (result == 0 && regular) note(&about);
  errno = error;
  return result;
}

int fsync(int fd) { return synced((int (*)(int))dlsym(RTLD_NEXT, "fsync"), fd); }

int fdatasync(int fd) { return synced((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"), fd); }

ssize_t write(int fd, const void *data, size_t size) {
  static ssize_t (*real)(int, const void *, size_t);
  if (!real) real = dlsym(RTLD_NEXT, "write");
  if (is_full(fd)) {
    errno = ENOSPC;
    return -1;
  }
  return real(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  static ssize_t (*real)(int, const struct iovec *, int);
  if (!real) real = dlsym(RTLD_NEXT, "writev");
  if (is_full(fd)) {
    errno = ENOSPC;
    return -1;
  }
  return real(fd, parts, count);
}
