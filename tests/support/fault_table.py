"""Every fault that the broker is to stand, and the tests that show it.

A test is named by file and function; with a bracket and the beginning of an id behind it, it is that case
of it. Whatever stands here is also checked for what it leaves behind (see ``tests/conftest.py``).
"""

from __future__ import annotations

_BESIDE = "test_left_behind.py::test_a_fault_stays_with_the_request_that_has_it"
_BAD_FORM = "test_bad_input.py::test_a_bad_form"
_NO_HTTP = "test_connections.py::test_what_is_no_proper_http_is_refused"
_OFTEN = "test_left_behind.py::test_memory_does_not_grow_with_faults"
_LEAVES = "test_client_faults.py::test_a_client_that_leaves_midway"
_LINE = "test_upstream_faults.py::test_trouble_on_the_line"
_NO_YES = "test_upstream_faults.py::test_an_answer_that_is_no_yes"

FAULTS: dict[str, tuple[str, ...]] = {
    # the caller's connection
    "client closes midway": (
        f"{_LEAVES}[FIN",
        f"{_LEAVES}[half-close",
        "test_client_faults.py::test_a_client_that_leaves_before_its_file[",
        "test_client_faults.py::test_others_do_not_notice",
        f"{_BESIDE}[client closes midway",
        f"{_OFTEN}[client closes midway",
    ),
    "client resets midway": (f"{_LEAVES}[RST", f"{_BESIDE}[client resets midway"),
    "client leaves while Coze stalls": (
        "test_client_faults.py::test_a_client_that_leaves_while_coze_stalls_is_noticed",
    ),
    "client sends the same again": (
        "test_idempotency.py::test_the_same_upload_gets_the_same_answer",
        "test_idempotency.py::test_of_those_that_come_at_once_one_is_stored",
        "test_idempotency.py::test_a_client_that_left_midway_sends_its_file_again",
    ),
    "client falls silent, or trickles": (
        "test_client_faults.py::test_a_client_that_falls_silent_is_told_so",
        "test_connections.py::test_a_trickle_is_stopped",
        f"{_BESIDE}[client falls silent",
        f"{_BESIDE}[client trickles",
    ),
    "client is slow with its head": (
        "test_connections.py::test_a_head_that_does_not_come_is_not_waited_for",
        "test_connections.py::test_a_connection_that_is_kept_may_rest",
        f"{_BESIDE}[client is slow with its head",
    ),
    "client does not read": (
        "test_connections.py::test_an_answer_that_is_not_read_holds_no_slot",
        "test_connections.py::test_a_client_that_never_reads_is_left",
        "test_connections.py::test_a_client_that_reads_slowly_gets_all",
    ),
    "length larger than the body": (f"{_LEAVES}[FIN-with length", f"{_BESIDE}[client falls silent midway"),
    "length smaller than the body": ("test_connections.py::test_what_follows_an_upload_is_no_part_of_it",),
    "length that is none": (
        "test_bad_input.py::test_a_content_length_that_is_no_number",
        f"{_NO_HTTP}[two lengths",
        f"{_NO_HTTP}[a negative length",
    ),
    "chunks without end": (
        "test_bad_input.py::test_real_bytes_stop_at_the_limit",
        "test_bad_input.py::test_one_byte_more_than_the_token_grants",
        f"{_BESIDE}[client never ends",
        f"{_BESIDE}[client says that it will send too much",
    ),
    "chunks that are none, trailers": (
        "test_bad_input.py::test_a_broken_chunk",
        "test_connections.py::test_a_broken_chunk_ends_the_upload",
        "test_connections.py::test_a_trailer_is_no_header",
        f"{_BESIDE}[client breaks off its chunks",
        f"{_OFTEN}[client breaks off its chunks",
    ),
    "two ways of framing": (
        "test_bad_input.py::test_two_ways_of_framing_are_refused",
        f"{_NO_HTTP}[a length and chunks",
        f"{_NO_HTTP}[another encoding",
        f"{_NO_HTTP}[a hidden encoding",
        f"{_BESIDE}[client frames in two ways",
        f"{_BESIDE}[client encodes the transfer",
    ),
    "head that is too large": (
        f"{_NO_HTTP}[one header of 100 KB",
        f"{_NO_HTTP}[many headers",
        "test_connections.py::test_a_head_without_end_is_cut_off_early",
        "test_connections.py::test_cozes_clients_can_read_such_a_refusal",
        f"{_BESIDE}[client floods the head",
        f"{_OFTEN}[client floods the head",
    ),
    "client waits for 100 Continue": (
        "test_bad_input.py::test_who_expects_100_continue_is_asked_for_the_body",
        "test_bad_input.py::test_curl_gets_the_refusal",
    ),
    "compressed body": ("test_bad_input.py::test_a_bad_body[gzip", f"{_BESIDE}[client compresses"),
    "client sends on after a refusal": (
        "test_bad_input.py::test_a_client_that_sends_on_gets_the_refusal",
        f"{_BESIDE}[client has no credential",
    ),
    "second request behind an upload": (
        "test_connections.py::test_a_second_request_has_no_credential_but_its_own",
        "test_connections.py::test_an_upload_that_failed_ends_its_connection",
    ),
    # the form and its names
    "boundary that is none, or cut": (
        "test_bad_input.py::test_a_boundary_that_is_none",
        f"{_BAD_FORM}[another boundary",
        "test_multipart.py::test_a_sound_form_reads_the_same_wherever_it_is_cut",
    ),
    "flood around the form": (
        f"{_BAD_FORM}[preamble flood",
        "test_bad_input.py::test_an_endless_epilogue_is_not_waited_for",
    ),
    "flood of parts or headers": (
        f"{_BAD_FORM}[part flood",
        f"{_BAD_FORM}[header flood",
        f"{_BAD_FORM}[header of a megabyte",
    ),
    "two files, none, an empty one, fields": (
        f"{_BAD_FORM}[two files",
        f"{_BAD_FORM}[no part",
        f"{_BAD_FORM}[empty file",
        "test_bad_input.py::test_what_stands_around_a_file_is_left_out",
        f"{_BESIDE}[client sends two files",
    ),
    "file that would be held or spooled": (
        "test_crash.py::test_a_large_upload_never_touches_the_disk",
        "test_memory.py::test_memory_stays_flat_over_a_file_of_300_mb",
    ),
    "form cut short": (f"{_BAD_FORM}[no end", f"{_BESIDE}[client cuts its form short"),
    "file name that is a trick": (
        "test_bad_input.py::test_a_bad_name",
        "test_bad_input.py::test_coze_is_told_the_name",
        "test_bad_input.py::test_a_raw_line_end_in_a_name_ends_the_name",
        "test_filenames.py::test_no_name_can_add_a_header_or_a_part",
    ),
    "two file names, odd charsets": (
        "test_filenames.py::test_a_name_is_read_from_content_disposition",
        "test_filenames.py::test_a_name_that_cannot_be_read_is_refused",
    ),
    "type and content disagree": (
        "test_sniffing.py::test_what_does_not_agree_never_reaches_coze",
        "test_uploads.py::test_a_file_of_another_type_than_granted_is_refused",
        "test_upstream_faults.py::test_a_code_with_status_200[4304",
        "test_filenames.py::test_the_content_type_comes_from_the_extension",
    ),
    "type that is a trick": (
        "test_tokens.py::test_what_can_not_be_granted_is_refused_and_named",
        "test_bad_input.py::test_nothing_of_the_caller_is_forwarded",
    ),
    "other bytes than announced": (
        "test_digests.py::test_a_file_that_is_not_what_was_announced_is_not_stored",
        "test_tokens.py::test_an_announced_digest_is_held_against_the_bytes",
        f"{_BESIDE}[client sends other bytes than announced",
    ),
    # the way to Coze
    "another upstream": (
        "test_upstream_faults.py::test_a_redirect_is_never_followed",
        "test_promises.py::test_nobody_is_sent_to_another_address",
        f"{_BESIDE}[Coze redirects",
    ),
    "headers passed on": ("test_bad_input.py::test_nothing_of_the_caller_is_forwarded",),
    "Coze closes midway": (
        f"{_LINE}[closes midway",
        f"{_LINE}[resets midway",
        "test_upstream_faults.py::test_a_reset_midway_may_be_tried_again",
        f"{_BESIDE}[Coze closes midway",
        f"{_BESIDE}[Coze resets midway",
        f"{_OFTEN}[Coze resets midway",
    ),
    "Coze does not read": (f"{_LINE}[never reads", f"{_BESIDE}[Coze never reads"),
    "Coze answers early": (
        "test_upstream_faults.py::test_an_answer_before_the_body_is_read_stops_the_upload",
        f"{_BESIDE}[Coze answers early",
    ),
    "Coze is busy": (
        "test_upstream_faults.py::test_retry_after_is_brought_within_bounds",
        "test_upstream_faults.py::test_retry_after_may_be_a_date",
        f"{_BESIDE}[Coze is busy",
    ),
    "Coze has a fault that passes": (
        "test_repeats.py::test_a_small_file_goes_again",
        "test_repeats.py::test_what_may_be_stored_or_is_gone_goes_once",
        "test_repeats.py::test_a_coze_that_can_not_be_reached_is_called_again",
        "test_upstream_faults.py::test_a_reset_midway_may_be_tried_again",
        f"{_BESIDE}[Coze has a fault",
    ),
    "Coze's answer is lost": (
        "test_idempotency.py::test_an_outcome_that_nobody_knows_is_not_tried_again",
        f"{_LINE}[never answers",
        f"{_LINE}[drips",
        f"{_LINE}[closes before it answers",
        f"{_BESIDE}[Coze never answers",
        f"{_BESIDE}[Coze drips",
        f"{_BESIDE}[Coze closes before it answers",
        f"{_BESIDE}[Coze stores, and its answer",
        f"{_OFTEN}[Coze stores, and its answer is lost",
    ),
    "Coze's answer is none": (
        "test_upstream_faults.py::test_a_code_with_status_200",
        f"{_NO_YES}[200, HTML",
        f"{_NO_YES}[half JSON",
        f"{_NO_YES}[five megabytes",
        "test_upstream_faults.py::test_a_yes_that_cannot_be_believed",
        f"{_BESIDE}[Coze answers HTML",
        f"{_BESIDE}[Coze answers half",
        f"{_BESIDE}[Coze answers without end",
        f"{_BESIDE}[Coze stores less",
        f"{_BESIDE}[Coze says no with 200",
    ),
    "Coze can't be reached": (
        "test_upstream_faults.py::test_nobody_listens",
        "test_upstream_faults.py::test_a_black_hole",
        "test_upstream_faults.py::test_tls_that_never_comes",
        "test_upstream_faults.py::test_a_certificate_that_is_not_trusted",
        "test_upstream_faults.py::test_a_name_that_nobody_knows",
        f"{_BESIDE}[Coze is not there",
        f"{_BESIDE}[Coze is a black hole",
    ),
    "all places are taken": (
        "test_admission.py::test_one_upload_too_many_of_a_key_is_refused_and_another_key_has_room",
        "test_promises.py::test_a_full_house_does_not_spend_the_token",
        "test_upstream_faults.py::test_uploads_wait_for_a_slot_in_turn",
    ),
    "Coze's token ends before its time": (
        "test_upstream_faults.py::test_a_credential_that_coze_no_longer_takes_is_replaced_once",
        f"{_BESIDE}[Coze takes no credential",
    ),
    # the process and its machine
    "process killed midway": (
        "test_crash.py::test_a_broker_that_was_killed_midway_starts_again",
        "test_idempotency.py::test_a_killed_process_leaves_a_row_that_says_so",
    ),
    "process stopped midway": (
        "test_shutdown.py::test_a_running_upload_is_finished_first",
        "test_shutdown.py::test_after_its_grace_an_upload_is_told_that_it_was_stopped",
        "test_shutdown.py::test_a_file_that_coze_may_have_is_not_asked_for_again",
    ),
    "disk full": (
        "test_crash.py::test_a_full_disk_shuts_and_opens_again",
        "test_crash.py::test_a_large_upload_never_touches_the_disk",
    ),
    "clock jumps": (
        "test_crash.py::test_a_jump_of_the_clock_does_not_hurt_what_runs",
        "test_crash.py::test_a_token_s_life_is_told_by_the_clock",
        "test_crash.py::test_a_clock_that_jumps_ahead_and_back_makes_no_token_fresh",
    ),
    "a thousand at once": ("test_crowd.py::test_everybody_in_a_crowd_gets_an_answer",),
    # who says that they are whom
    "ID token forged, or somebody else's": (
        "test_id_tokens.py::test_what_the_provider_did_not_sign_as_it_stands_is_refused",
        "test_id_tokens.py::test_a_claim_that_is_not_right_is_refused",
        "test_callers.py::test_what_is_no_id_token_for_us_is_refused",
    ),
    "identity provider is away, or not well": (
        "test_openid_provider.py::test_without_keys_nobody_is_let_in",
        "test_openid_provider.py::test_keys_outlive_a_provider_that_is_not_well",
        "test_openid_provider.py::test_unknown_keys_ask_the_provider_every_half_minute_at_most",
        "test_callers.py::test_without_its_provider_users_wait_and_servers_do_not",
    ),
    "signed request comes again": (
        "test_signatures.py::test_a_nonce_is_good_for_one_request",
        "test_signatures.py::test_a_request_that_comes_to_two_processes_at_once_passes_once",
        "test_callers.py::test_a_signed_request_is_good_once",
    ),
    "signed request changed on its way": (
        "test_signatures.py::test_what_was_changed_on_its_way_is_refused",
        "test_callers.py::test_a_file_that_was_changed_on_its_way_is_not_stored",
        "test_callers.py::test_a_form_that_was_changed_and_goes_on_behind_its_end_is_not_stored",
    ),
    "direct upload reported with a foreign or invented file_id": (
        "test_completion.py::test_an_invented_file_id_is_refused",
        "test_completion.py::test_a_foreign_file_is_refused",
        "test_completion.py::test_of_many_who_report_one_file_at_once_one_gets_it",
        "test_browser_helper.py::test_a_page_cannot_get_a_receipt_for_somebody_else_s_file",
    ),
}


def names(test: str, node_id: str) -> bool:
    """Whether ``test``, as it stands in the table, is or has the test with this id."""
    path = f"tests/{test}"
    return node_id.startswith(path) if "[" in test else node_id.partition("[")[0] == path


def is_named(node_id: str) -> bool:
    """Whether the test with this id stands in the table."""
    return any(names(test, node_id) for tests in FAULTS.values() for test in tests)
