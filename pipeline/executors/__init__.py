"""All units: which worker does which, in this process, in local processes or as Ray actors."""
