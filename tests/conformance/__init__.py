"""Winsock's rules for shared sockets, as sockshare keeps them: a module a rule, a test a sentence and kind of socket.

The rules are those of the pages *Shared Sockets* and *WSADuplicateSocket* of Microsoft's reference of Windows Sockets;
each test quotes its rule in its docstring. docs/winsock.md has the same as a table, with the differences.

===========================  ============================================================================
test_rule_1_duplicate.py     a ticket for one process, carried by any means, gives it the same socket
test_rule_2_threads.py       threads share one descriptor and need no duplicate
test_rule_3_io.py            duplicates are used independently, in both directions
test_rule_4_state.py         all state is shared
test_rule_5_close.py         a close is of one descriptor; the socket lives to the last; who holds it is shown
test_rule_6_registration.py  a registration through any duplicate cancels the former one
test_rule_7_hand_over.py     one process makes connections, others exchange data on them
===========================  ============================================================================

What a manager has no part in (2 to 4: only the kernel has) is tried under one of them.
"""
