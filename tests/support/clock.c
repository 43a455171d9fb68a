/* A wall clock that a test sets: loaded into a program (LD_PRELOAD), it adds the seconds that the file
 * $VNET_TEST_CLOCK holds, a number of 64 bits, to CLOCK_REALTIME. The file is mapped, so the program sees at
 * once what the test writes, and needs no access to the file once it has started. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *ahead;

__attribute__((constructor)) static void map_clock(void) {
    const char *path = getenv("VNET_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *place = MAP_FAILED;
    if (file >= 0) {
        place = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
        close(file);
    }
    if (place == MAP_FAILED)
        abort();
    ahead = place;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_REALTIME && ahead)
        now->tv_sec += *ahead;
    return result;
}
