"""Tests that a sibling of theirs stands for in the default run, which is to be over in ten minutes on two cores: they
are another case of the same law, and cost most. With ``-m soak`` they run like all that is long."""

from __future__ import annotations

_HOOKS = "tests/circus/test_hooks.py::"
_RELOAD = "tests/e2e/test_reload.py::"
_STEPS = "tests/e2e/test_every_step.py::test_traffic_and_the_next_reload_survive_every_mishap_at_every_step"
_GATES = "tests/registration/test_gates.py::"
_STORM = "tests/registration/test_storms.py::test_one_holds_and_nothing_queued_is_lost_in_a_storm"
_SERVERS = "tests/registration/test_servers.py::test_unmodified_server_is_alone_and_followed"
_DRAIN = "tests/e2e/test_drain.py::test_no_request_is_lost_when_a_server_without_a_handler_is_replaced"
_EXAMPLE = "tests/examples/test_circus_examples.py::test_new_version_answers_after_reload_of_example"
_SUPERVISED = _STEPS.replace("e2e", "supervisor")

ALIKE = frozenset(
    {
        f"{_HOOKS}test_nothing_is_lost_or_late_across_circus_reloads[uvicorn-2-sequential]",
        f"{_HOOKS}test_old_ones_stay_when_new_ones_fail[exit_at_import-False0]",
        f"{_HOOKS}test_old_ones_stay_when_new_ones_fail[hang_at_import-False0]",
        f"{_HOOKS}test_nothing_is_lost_when_processes_reach_max_age",
        f"{_HOOKS}test_signal_goes_out_when_broker_does_not_answer",
        f"{_HOOKS}test_reload_ends_well_when_one_of_ours_is_killed[start0-broker]",
        f"{_HOOKS}test_reload_ends_well_when_one_of_ours_is_killed[start0-host]",
        f"{_HOOKS}test_reload_ends_well_when_one_of_ours_is_killed[switch0-host]",
        f"{_RELOAD}test_no_new_connection_is_lost_or_late_across_reloads[uvicorn-1]",
        f"{_RELOAD}test_no_new_connection_is_lost_or_late_across_reloads[gthread-2]",
        f"{_RELOAD}test_kept_connections_and_running_requests_survive_reloads[gthread-1]",
        f"{_HOOKS}test_sockshare_reload_works_beside_the_hook",
        f"{_HOOKS}test_old_one_stays_when_its_successor_fails_at_max_age",
        f"{_STEPS}[warm-new-killed]",
        f"{_STEPS}[start-circusd-busy]",
        f"{_STEPS}[stop-circusd-late]",
        f"{_STEPS}[verify-old-killed]",
        "tests/e2e/test_kills.py::test_one_generation_remains_when_command_is_killed",
        "tests/e2e/test_broken_deploys.py::test_old_ones_serve_on_when_new_one_fails[exit_at_import]",
        "tests/e2e/test_broken_deploys.py::test_old_ones_serve_on_when_new_one_fails[ready_then_exit]",
        "tests/e2e/test_given_up.py::test_version_that_never_says_that_it_is_ready_serves_next_to_nobody[supervisor]",
        "tests/e2e/test_given_up.py::test_request_met_before_the_hold_is_answered[supervisor-no-handler]",
        f"{_GATES}test_no_descriptor_is_left_when_holders_and_brokers_come_and_go[circus]",
        f"{_GATES}test_no_descriptor_is_left_when_holders_and_brokers_come_and_go[supervisord]",
        f"{_GATES}test_gates_survive_what_supervisord_closes_when_it_reloads",
        "tests/registration/test_reloads.py::test_reload_moves_the_registration_along[circus-gated]",
        f"{_STORM}[circus-taking-udp]",
        f"{_SERVERS}[taking-edge]",
        f"{_DRAIN}[flask]",
        f"{_EXAMPLE}[gunicorn-sync]",
        f"{_EXAMPLE}[waitress]",
        f"{_EXAMPLE}[udp-echo]",
        "tests/examples/test_supervisor_examples.py::test_new_version_answers_after_reload_of_example[uvicorn]",
        "tests/handover/test_udp.py::test_no_datagram_is_lost_in_a_reload[circus]",
        f"{_SUPERVISED}[stop-supervisord-late]",
        f"{_STORM}[supervisord-taking]",
        f"{_SERVERS}[uvloop]",
        f"{_SERVERS}[gthread]",
        "tests/supervisor/test_must_hold.py::test_kept_connections_and_running_requests_survive_reloads[uvicorn-1]",
        "tests/supervisor/test_draining.py::test_old_one_serves_on_when_the_page_does_not_answer[node]",
        "tests/client/test_registration.py::test_holder_serves_on_when_the_broker_is_killed",
    }
)
