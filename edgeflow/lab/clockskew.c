/* A clock that is wrong, for one process: LD_PRELOAD.
 *
 * The file CLOCKSKEW_MS holds by how many milliseconds the wall clock is off; it is looked at every 50 ms. Without it the clock is right. The monotonic clock is left alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define MILLION 1000000LL

static int (*real_clock)(clockid_t, struct timespec *);

static long long off_ms(void) {
  static long long known_ms, looked_ms = -1000;
  struct timespec now;
  char text[32];
  const char *path = getenv("CLOCKSKEW_MS");
  if (!path) return 0;
  real_clock(CLOCK_MONOTONIC, &now);
  long long now_ms = now.tv_sec * 1000LL + now.tv_nsec / MILLION;
  if (now_ms - looked_ms < 50) return known_ms;
  looked_ms = now_ms;
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return known_ms = 0;
  ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  text[length > 0 ? length : 0] = 0;
  return known_ms = atoll(text);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
  if (!real_clock) real_clock = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real_clock(clock, time);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
    long long all = time->tv_sec * 1000LL * MILLION + time->tv_nsec + off_ms() * MILLION;
    time->tv_sec = all / (1000LL * MILLION);
    time->tv_nsec = all % (1000LL * MILLION);
  }
  return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
  struct timespec now;
  (void)zone;
  int result = clock_gettime(CLOCK_REALTIME, &now);
  time->tv_sec = now.tv_sec;
  time->tv_usec = now.tv_nsec / 1000;
  return result;
}

time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
