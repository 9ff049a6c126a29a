#define _POSIX_C_SOURCE 200809L

#include "interrupts.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static mutoscope_pipeline *current_pipeline;
static bool interrupted;

static void fill_signals(sigset_t *signals) {
    sigemptyset(signals);
    sigaddset(signals, SIGINT);
    sigaddset(signals, SIGTERM);
}

/* In a thread and not in a handler: mutoscope_cancel need not be safe in a handler. */
static void *wait_for_signals(void *unused) {
    sigset_t signals;
    int number;
    (void)unused;
    fill_signals(&signals);
    if (sigwait(&signals, &number) != 0) return NULL;
    pthread_mutex_lock(&mutex);
    interrupted = true;
    if (current_pipeline != NULL) mutoscope_cancel(current_pipeline);
    pthread_mutex_unlock(&mutex);
    /* The second one finds a thread that does not block it, and what a signal does otherwise. */
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, &signals, NULL);
    for (;;) pause();
    return NULL;
}

bool start_interrupts(void) {
    sigset_t signals;
    pthread_t thread;
    /* A pipe whose reader has gone is an error of the write, which can be cleaned up after. */
    signal(SIGPIPE, SIG_IGN);
    fill_signals(&signals);
    if (pthread_sigmask(SIG_BLOCK, &signals, NULL) != 0) return false;
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
