"""Reports over HTTP: the job, the web application with its page, and the limits on what comes in."""
