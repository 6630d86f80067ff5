/* Every system call that changes files, counted over all threads, and failed, torn, shortened or fatal on demand.
 *
 * A library to be preloaded. It does nothing until shim_arm() is called (through ctypes, in a forked child); from then on
 * it counts the calls that change something below one folder, and one of them, chosen by its number, meets its fate:
 *
 *     kill     SIGKILL before the call
 *     torn     half of the write is done, then SIGKILL; other calls go on unharmed
 *     error    the call fails with an errno (a write: after half of it was done)
 *     short    half of the write is done, and that is what the call returns, this time and every later one
 *
 * "lasting" errors hit every later call as well. What was written or synced to the file that failed, after it had failed,
 * is counted too: nobody may go on as if the data were safe.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { WRITE, PWRITE, FSYNC, FDATASYNC, RENAME, LINK, UNLINK, FTRUNCATE, MKDIR, CALLS };
enum { NOTHING, KILL, TORN, ERROR, SHORT };
static const char *const call_names[CALLS] = {"write", "pwrite64", "fsync", "fdatasync", "rename",
                                              "link",  "unlink",   "ftruncate", "mkdir"};
static const char *const fate_names[] = {"", "kill", "torn", "error", "short"};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char folder[PATH_MAX];
static size_t folder_length;
static int fate, code, lasting, only;
static long chosen, seen, counts[CALLS], later;
static int hit_call = -1;
static char hit_path[PATH_MAX];

/* -- for the process that is to suffer ------------------------------------------------------------------------------ */

/* Watch the real path `where` (with a slash at its end). The call number `at` (from 1; of the kind `call`, or of all kinds
 * together for "") meets `what`. Returns -1 for a word that is not known. */
int shim_arm(const char *where, const char *call, long at, const char *what, int error, int lasts)
{
    int kind = -1, end = NOTHING;
    for (int n = 0; n < CALLS; n++)
        if (!strcmp(call, call_names[n]))
            kind = n;
    for (int n = NOTHING; n <= SHORT; n++)
        if (!strcmp(what, fate_names[n]))
            end = n;
    if ((*call && kind < 0) || (*what && end == NOTHING) || strlen(where) >= sizeof folder)
        return -1;
    pthread_mutex_lock(&lock);
    strcpy(folder, where);
    folder_length = strlen(where);
    fate = end, code = error, lasting = lasts, only = kind, chosen = at, seen = later = 0;
    hit_call = -1;
    memset(counts, 0, sizeof counts);
    pthread_mutex_unlock(&lock);
    return 0;
}

void shim_disarm(void) { folder_length = 0; }

/* How many calls of one kind there were. */
long shim_count(const char *call)
{
    for (int n = 0; n < CALLS; n++)
        if (!strcmp(call, call_names[n]))
            return counts[n];
    return -1;
}

/* What failed first: the call, or "" ... */
const char *shim_hit_call(void) { return hit_call < 0 ? "" : call_names[hit_call]; }

/* ... and its file ... */
const char *shim_hit_path(void) { return hit_call < 0 ? "" : hit_path; }

/* ... and how often that was written to or synced with success afterwards. */
long shim_later(void) { return later; }

/* -- what happens at a call ---------------------------------------------------------------------------------------- */

static int by_descriptor(int fd, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return length > 0;
}

static int by_name(int dirfd, const char *name, char *path)
{
    char base[PATH_MAX];
    if (name[0] == '/' || (dirfd == AT_FDCWD && !getcwd(base, sizeof base)) ||
        (dirfd != AT_FDCWD && !by_descriptor(dirfd, base)))
        snprintf(path, PATH_MAX, "%s", name);
    else if (snprintf(path, PATH_MAX, "%s/%s", base, name) >= PATH_MAX)
        return 0;
    return 1;
}

/* Decide the fate of a call on a file. KILL happens here. */
static int meet(int call, const char *path)
{
    int verdict = NOTHING;
    if (!folder_length)
        return NOTHING;
    pthread_mutex_lock(&lock);
    size_t length = strlen(path); /* the folder itself counts too */
    if (folder_length && (!strncmp(path, folder, folder_length) ||
                          (length + 1 == folder_length && !strncmp(path, folder, length)))) {
        counts[call]++;
        if (only < 0 || only == call)
            seen++;
        int now = (only < 0 || only == call) && seen == chosen;
        if (fate == SHORT)
            verdict = now || (chosen && seen > chosen) ? SHORT : NOTHING;
        else if (now || (lasting && hit_call >= 0))
            verdict = fate;
        if (verdict == ERROR && hit_call < 0) {
            hit_call = call;
            snprintf(hit_path, sizeof hit_path, "%s", path);
        } else if (verdict != ERROR && hit_call >= 0 && !strcmp(path, hit_path) && call <= FDATASYNC) {
            later++;
        }
    }
    pthread_mutex_unlock(&lock);
    if (verdict == KILL)
        kill(getpid(), SIGKILL);
    return verdict;
}

#define REAL(type, name, ...)                                                                                          \
    static type (*real)(__VA_ARGS__);                                                                                  \
    if (!real)                                                                                                         \
    *(void **)&real = dlsym(RTLD_NEXT, #name)

#define FAIL                                                                                                           \
    do {                                                                                                               \
        errno = code;                                                                                                  \
        return -1;                                                                                                     \
    } while (0)

/* A write: `do_half` writes half of the bytes. */
#define WRITES(call, size, do_half, do_all)                                                                            \
    do {                                                                                                               \
        char path[PATH_MAX];                                                                                           \
        int verdict = folder_length && by_descriptor(fd, path) ? meet(call, path) : NOTHING;                           \
        if (verdict == SHORT && size > 1)                                                                              \
            return do_half;                                                                                            \
        if ((verdict == TORN || verdict == ERROR) && size > 1 && do_half < 0)                                          \
            return -1;                                                                                                 \
        if (verdict == TORN)                                                                                           \
            kill(getpid(), SIGKILL);                                                                                   \
        if (verdict == ERROR)                                                                                          \
            FAIL;                                                                                                      \
        return do_all;                                                                                                 \
    } while (0)

#define CHANGES(call, known, act)                                                                                      \
    do {                                                                                                               \
        char path[PATH_MAX];                                                                                           \
        if (folder_length && (known) && meet(call, path) == ERROR)                                                     \
            FAIL;                                                                                                      \
        return act;                                                                                                    \
    } while (0)

/* -- the calls ------------------------------------------------------------------------------------------------------ */

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(ssize_t, write, int, const void *, size_t);
    WRITES(WRITE, size, real(fd, data, size / 2), real(fd, data, size));
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
    WRITES(PWRITE, size, real(fd, data, size / 2, at), real(fd, data, size, at));
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    WRITES(PWRITE, size, real(fd, data, size / 2, at), real(fd, data, size, at));
}

int fsync(int fd)
{
    REAL(int, fsync, int);
    CHANGES(FSYNC, by_descriptor(fd, path), real(fd));
}

int fdatasync(int fd)
{
    REAL(int, fdatasync, int);
    CHANGES(FDATASYNC, by_descriptor(fd, path), real(fd));
}

int ftruncate(int fd, off_t size)
{
    REAL(int, ftruncate, int, off_t);
    CHANGES(FTRUNCATE, by_descriptor(fd, path), real(fd, size));
}

int ftruncate64(int fd, off64_t size)
{
    REAL(int, ftruncate64, int, off64_t);
    CHANGES(FTRUNCATE, by_descriptor(fd, path), real(fd, size));
}

int rename(const char *from, const char *to)
{
    REAL(int, rename, const char *, const char *);
    CHANGES(RENAME, by_name(AT_FDCWD, to, path), real(from, to));
}

int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    REAL(int, renameat, int, const char *, int, const char *);
    CHANGES(RENAME, by_name(to_dir, to, path), real(from_dir, from, to_dir, to));
}

int link(const char *from, const char *to)
{
    REAL(int, link, const char *, const char *);
    CHANGES(LINK, by_name(AT_FDCWD, to, path), real(from, to));
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
    REAL(int, linkat, int, const char *, int, const char *, int);
    CHANGES(LINK, by_name(to_dir, to, path), real(from_dir, from, to_dir, to, flags));
}

int unlink(const char *name)
{
    REAL(int, unlink, const char *);
    CHANGES(UNLINK, by_name(AT_FDCWD, name, path), real(name));
}

int unlinkat(int dir, const char *name, int flags)
{
    REAL(int, unlinkat, int, const char *, int);
    CHANGES(UNLINK, by_name(dir, name, path), real(dir, name, flags));
}

int rmdir(const char *name)
{
    REAL(int, rmdir, const char *);
    CHANGES(UNLINK, by_name(AT_FDCWD, name, path), real(name));
}

int mkdir(const char *name, mode_t mode)
{
    REAL(int, mkdir, const char *, mode_t);
    CHANGES(MKDIR, by_name(AT_FDCWD, name, path), real(name, mode));
}

int mkdirat(int dir, const char *name, mode_t mode)
{
    REAL(int, mkdirat, int, const char *, mode_t);
    CHANGES(MKDIR, by_name(dir, name, path), real(dir, name, mode));
}
