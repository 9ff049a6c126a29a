/* Ctrl-C and SIGTERM stop a generation in the middle of a step. */
#ifndef MUTOSCOPE_C_INTERRUPTS_H
#define MUTOSCOPE_C_INTERRUPTS_H

#include <stdbool.h>

#include "mutoscope.h"

/* Start a thread that waits for both signals; before any other thread is started. A second signal
 * ends the process at once. Returns whether it runs. */
bool start_interrupts(void);

/* The pipeline to cancel; NULL before it is closed. */
void set_interrupted_pipeline(mutoscope_pipeline *pipeline);

/* Whether a signal came. */
bool was_interrupted(void);

#endif
