"""The impact table, and the files that hold one."""
