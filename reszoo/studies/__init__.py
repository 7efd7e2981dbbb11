"""The experiment behind the zoo: what depth does with shortcuts, and without."""
