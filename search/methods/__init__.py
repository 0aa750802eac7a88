"""Search methods: each module is one."""
