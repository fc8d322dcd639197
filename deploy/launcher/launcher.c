/* The first process of a `stdio` function's container: it starts the function's program once for each invocation.
 *
 *   launch PORT PROGRAM ARGUMENT...
 *
 * What it is: the far end of edgeflow/sdk/adapters/launched.py: connects to the adapter on 127.0.0.1:PORT (they share a network namespace), and then runs
 * what it is told, one program at a time. Static, because nothing is known of the image but that it can run a program.
 * What it is not: a shell, or anything that the program could not do itself: it runs under the program's account, in its container.
 * What must stay true: nothing of an invocation outlives it (the program has a process group of its own, which is killed); without an adapter it ends.
 *
 * Frames, both ways: type (1 byte), length (4 bytes, big endian), payload.
 *   R  run: environment variables NAME=VALUE, a zero byte behind each      O  a piece of the program's standard output
 *   I  a piece of its standard input                                       X  a piece of its standard error (also written to ours)
 *   E  end of its standard input                                           S  it has ended: status (4 bytes; negative: the signal)
 *   K  kill it
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 64 * 1024, LARGEST = 1024 * 1024, MOST_WAITING = 4 * 1024 * 1024, CONNECT_S = 120, DRAIN_MS = 500 };

static int adapter = -1;
static pid_t child = -1;
static int child_in = -1, child_out = -1, child_err = -1;
static char *waiting;            /* input that the program has not taken yet */
static size_t waiting_bytes, waiting_from;
static int input_ended;
static volatile sig_atomic_t leaving;
static sigset_t usual;           /* what is blocked but for SIGCHLD, which arrives while this waits and at no other time */

static void on_child(int number) { (void)number; }
static void on_term(int number) { (void)number; leaving = 1; if (child > 0) kill(-child, SIGKILL); _exit(0); }

static void fail(const char *what) {
    fprintf(stderr, "edgeflow launcher: %s: %s\n", what, strerror(errno));
    if (child > 0) kill(-child, SIGKILL);
    exit(1);
}

static void *need(void *memory) { if (!memory) { errno = ENOMEM; fail("memory"); } return memory; }

/* Whole reads and writes on the adapter's socket; its end is ours. */
static void get(void *to, size_t bytes) {
    for (char *at = to; bytes > 0;) {
        ssize_t got = read(adapter, at, bytes);
        if (got > 0) { at += got; bytes -= (size_t)got; }
        else if (got == 0 || errno != EINTR) { if (child > 0) kill(-child, SIGKILL); exit(0); }
    }
}

static void put(int fd, const void *from, size_t bytes) {
    for (const char *at = from; bytes > 0;) {
        ssize_t sent = write(fd, at, bytes);
        if (sent >= 0) { at += sent; bytes -= (size_t)sent; }
        else if (errno != EINTR) { if (fd == adapter) { if (child > 0) kill(-child, SIGKILL); exit(0); } return; }
    }
}

static void tell(char type, const void *payload, uint32_t bytes) {
    unsigned char head[5] = { (unsigned char)type };
    uint32_t length = htonl(bytes);
    memcpy(head + 1, &length, 4);
    put(adapter, head, 5);
    put(adapter, payload, bytes);
}

static void shut(int *fd) { if (*fd >= 0) close(*fd); *fd = -1; }

static void forget_input(void) { free(waiting); waiting = NULL; waiting_bytes = waiting_from = 0; }

static void start(char **command, char *variables, uint32_t bytes) {
    int in[2], out[2], err[2];
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) fail("pipe");
    child = fork();
    if (child < 0) fail("fork");
    if (child == 0) {
        setpgid(0, 0);
        signal(SIGPIPE, SIG_DFL);
        signal(SIGTERM, SIG_DFL);
        signal(SIGINT, SIG_DFL);
        sigprocmask(SIG_SETMASK, &usual, NULL);
        dup2(in[0], 0); dup2(out[1], 1); dup2(err[1], 2);
        for (char *at = variables; at < variables + bytes; at += strlen(at) + 1) if (strchr(at, '=')) putenv(at);
        execvp(command[0], command);
        fprintf(stderr, "edgeflow launcher: %s: %s\n", command[0], strerror(errno));
        _exit(127);
    }
    setpgid(child, child);
    close(in[0]); close(out[1]); close(err[1]);
    child_in = in[1]; child_out = out[0]; child_err = err[0];
    fcntl(child_in, F_SETFL, O_NONBLOCK);
    input_ended = 0;
    forget_input();
}

static void add_input(const char *data, size_t bytes) {
    if (child_in < 0) return;    /* the program does not read on */
    if (waiting_from == waiting_bytes) forget_input();
    waiting = need(realloc(waiting, waiting_bytes + bytes + 1));
    memcpy(waiting + waiting_bytes, data, bytes);
    waiting_bytes += bytes;
}

static void give_input(void) {
    ssize_t sent = write(child_in, waiting + waiting_from, waiting_bytes - waiting_from);
    if (sent > 0) waiting_from += (size_t)sent;
    else if (errno != EAGAIN && errno != EINTR) { shut(&child_in); forget_input(); }
}

/* One frame of the adapter. */
static void listen_to_adapter(char **command) {
    unsigned char head[5];
    uint32_t bytes;
    get(head, 5);
    memcpy(&bytes, head + 1, 4);
    bytes = ntohl(bytes);
    if (bytes > LARGEST) { errno = EMSGSIZE; fail("frame"); }
    char *payload = need(malloc(bytes + 1));
    get(payload, bytes);
    payload[bytes] = 0;
    switch (head[0]) {
    case 'R': if (child < 0) start(command, payload, bytes); break;
    case 'I': add_input(payload, bytes); break;
    case 'E': input_ended = 1; break;
    case 'K': if (child > 0) kill(-child, SIGKILL); break;
    default: break;              /* of a newer adapter */
    }
    free(payload);
}

/* A piece of what the program writes; 0 at its end. */
static int pass_on(int *fd, char type) {
    static char piece[PIECE];
    ssize_t got = read(*fd, piece, sizeof piece);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return 1;
    if (got <= 0) { shut(fd); return 0; }
    if (type == 'X') put(2, piece, (size_t)got);
    tell(type, piece, (uint32_t)got);
    return 1;
}

/* The program has ended: what it left behind ends too, what it wrote is passed on, and its status is told. */
static void finish(int status) {
    kill(-child, SIGKILL);
    child = -1;
    shut(&child_in);
    forget_input();
    while (child_out >= 0 || child_err >= 0) {
        struct pollfd left[2] = { { child_out, POLLIN, 0 }, { child_err, POLLIN, 0 } };
        if (poll(left, 2, DRAIN_MS) <= 0) break;       /* something that got away holds it open */
        if (left[0].revents) pass_on(&child_out, 'O');
        if (left[1].revents) pass_on(&child_err, 'X');
    }
    shut(&child_out); shut(&child_err);
    uint32_t told = htonl((uint32_t)(WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status)));
    tell('S', &told, 4);
}

static void connect_to(const char *port) {
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int one = 1;
    for (int tries = 0; tries < CONNECT_S * 20; tries++) {
        adapter = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (adapter < 0) fail("socket");
        if (connect(adapter, (struct sockaddr *)&to, sizeof to) == 0) {
            setsockopt(adapter, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            return;
        }
        close(adapter);
        nanosleep(&(struct timespec){ 0, 50 * 1000 * 1000 }, NULL);
    }
    fail("the adapter does not listen");
}

int main(int count, char **arguments) {
    if (count < 3) { fprintf(stderr, "usage: launch PORT PROGRAM ARGUMENT...\n"); return 2; }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, on_term);
    signal(SIGINT, on_term);
    signal(SIGCHLD, on_child);
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGCHLD);
    if (sigprocmask(SIG_BLOCK, &ends, &usual)) fail("signals");
    connect_to(arguments[1]);
    while (!leaving) {
        int has_input = child_in >= 0 && waiting_from < waiting_bytes;
        if (child_in >= 0 && !has_input && input_ended) shut(&child_in);
        struct pollfd all[4] = {
            /* A program that does not read holds up its input, not our memory; the adapter's end is seen all the same. */
            { adapter, waiting_bytes - waiting_from > MOST_WAITING ? POLLRDHUP : POLLIN, 0 }, { has_input ? child_in : -1, POLLOUT, 0 }, { child_out, POLLIN, 0 }, { child_err, POLLIN, 0 },
        };
        /* A child's end interrupts it; one that came before is not missed, because until here the signal is blocked. */
        if (ppoll(all, 4, NULL, &usual) < 0) {
            if (errno != EINTR) fail("poll");
            for (int i = 0; i < 4; i++) all[i].revents = 0;
        }
        if (all[0].revents & POLLIN) listen_to_adapter(arguments + 2);
        else if (all[0].revents) { if (child > 0) kill(-child, SIGKILL); return 0; }
        if (all[1].revents && child_in >= 0) give_input();
        if (all[2].revents && child_out >= 0) pass_on(&child_out, 'O');
        if (all[3].revents && child_err >= 0) pass_on(&child_err, 'X');
        int status;
        if (child > 0 && waitpid(child, &status, WNOHANG) == child) finish(status);
    }
    return 0;
}
