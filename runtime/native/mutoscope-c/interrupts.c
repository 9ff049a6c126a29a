#define _POSIX_C_SOURCE 200809L

#include "interrupts.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <time.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static mutoscope_pipeline *current_pipeline;
static bool interrupted;
/* Written before the thread is started. */
static pthread_t blocking_thread;
static sigset_t awaited;

static void wake(int number) { (void)number; }

static void fill_awaited(void) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    size_t index;
    sigemptyset(&awaited);
    for (index = 0; index < sizeof numbers / sizeof numbers[0]; index++) {
        struct sigaction action;
        if (sigaction(numbers[index], NULL, &action) == 0 && action.sa_handler != SIG_IGN) {
            sigaddset(&awaited, numbers[index]);
        }
    }
}

/* In a thread and not in a handler: mutoscope_cancel need not be safe in a handler. */
static void *wait_for_signals(void *unused) {
    const struct timespec pause = {0, 100 * 1000 * 1000};
    int number;
    (void)unused;
    if (sigwait(&awaited, &number) != 0) return NULL;
    /* The second one finds a thread that does not block it, and what a signal does otherwise. */
    pthread_sigmask(SIG_UNBLOCK, &awaited, NULL);
    /* Again and again: it may come just before a generation, or a call that blocks, begins. */
    for (;;) {
        pthread_mutex_lock(&mutex);
        interrupted = true;
        if (current_pipeline != NULL) mutoscope_cancel(current_pipeline);
        pthread_mutex_unlock(&mutex);
        pthread_kill(blocking_thread, SIGUSR1);
        nanosleep(&pause, NULL);
    }
    return NULL;
}

bool start_interrupts(void) {
    struct sigaction action = {0};
    sigset_t wakers;
    pthread_t thread;
    /* A pipe whose reader has gone is an error of the write, which can be cleaned up after. */
    signal(SIGPIPE, SIG_IGN);
    /* Without SA_RESTART: its only purpose is that a blocked call ends. */
    action.sa_handler = wake;
    sigemptyset(&action.sa_mask);
    sigemptyset(&wakers);
    sigaddset(&wakers, SIGUSR1);
    if (sigaction(SIGUSR1, &action, NULL) != 0) return false;
    if (pthread_sigmask(SIG_UNBLOCK, &wakers, NULL) != 0) return false;
    blocking_thread = pthread_self();
    fill_awaited();
    if (pthread_sigmask(SIG_BLOCK, &awaited, NULL) != 0) return false;
    if (pthread_create(&thread, NULL, wait_for_signals, NULL) != 0) return false;
    pthread_detach(thread);
    return true;
}

void set_interrupted_pipeline(mutoscope_pipeline *pipeline) {
    pthread_mutex_lock(&mutex);
    current_pipeline = pipeline;
    pthread_mutex_unlock(&mutex);
}

bool was_interrupted(void) {
    bool result;
    pthread_mutex_lock(&mutex);
    result = interrupted;
    pthread_mutex_unlock(&mutex);
    return result;
}
