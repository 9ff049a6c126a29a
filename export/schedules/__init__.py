"""Parts of the schedule tracer; mutoscope.export.schedule is its front."""
