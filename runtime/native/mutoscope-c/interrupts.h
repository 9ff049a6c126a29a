/* Ctrl-C, SIGTERM and SIGHUP stop a generation in the middle of a step. */
#ifndef MUTOSCOPE_C_INTERRUPTS_H
#define MUTOSCOPE_C_INTERRUPTS_H

#include <stdbool.h>

#include "mutoscope.h"

/* Start a thread that waits for these signals, but for those that the process was started to
 * ignore, as nohup does; before any other thread is started, and in the thread that reads and
 * writes: what blocks there ends with EINTR once a signal came. A second signal ends the process at
 * once. Returns whether the thread runs. */
bool start_interrupts(void);

/* The pipeline to cancel; NULL before it is closed. */
void set_interrupted_pipeline(mutoscope_pipeline *pipeline);

/* Whether a signal came. */
bool was_interrupted(void);

#endif
