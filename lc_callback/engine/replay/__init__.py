"""The same network, faster: operations that were recorded are executed again, and differentiated one by one."""
