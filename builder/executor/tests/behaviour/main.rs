//! What a container is, seen from inside and outside: one suite over the native executor, runc and crun.
//!
//! Needs root, `/bin/busybox` (static), and for the other two their runtimes.

// Clippy knows only #[test] functions as tests.
#![allow(clippy::unwrap_used)]

mod calls;
mod devices;
mod ends;
mod escapes;
mod foreign;
mod harness;
mod mounts;
mod network;
mod overhead;
mod remains;
mod sees;
mod talks;

use harness::Kind;

macro_rules! suite {
    ($($module:ident: $($case:ident),+ $(,)?;)+) => {
        suite!(@kind native Native $($module: $($case),+;)+);
        suite!(@kind runc Runc $($module: $($case),+;)+);
        suite!(@kind crun Crun $($module: $($case),+;)+);
    };
    (@kind $name:ident $kind:ident $($module:ident: $($case:ident),+;)+) => {
        mod $name {
            use super::*;
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    $module::$case(Kind::$kind).await;
                }
            )+)+
        }
    };
}

/// Cases that have a machine's network to themselves.
macro_rules! on_machines {
    ($($case:ident),+ ; native only: $($only:ident),+ $(,)?) => {
        on_machines!(@kind native Native $($case,)+ $($only,)+);
        on_machines!(@kind runc Runc $($case,)+);
        on_machines!(@kind crun Crun $($case,)+);
    };
    (@kind $name:ident $kind:ident $($case:ident,)+) => {
        mod $name {
            use super::super::{Kind, network};
            $(
                #[test]
                fn $case() {
                    network::on_machine(Kind::$kind, network::$case);
                }
            )+
        }
    };
}

mod networks {
    on_machines! {
        a_sandbox_reaches_the_outside_by_the_machines_address,
        a_sandbox_is_kept_from_the_machines_loopback,
        sandboxes_are_kept_from_each_other,
        a_sandbox_has_no_ipv6_but_loopback,
        names_are_asked_of_the_machines_own_resolver,
        host_gateway_is_where_the_machine_is_reached,
        many_at_once_have_addresses_of_their_own,
        a_sandbox_is_used_again_only_if_nothing_has_happened_in_it,
        nothing_of_the_network_stays,
        nothing_of_the_network_stays_after_kill;
        native only:
        a_firewall_in_the_way_means_the_machines_network,
        a_subnet_in_use_is_not_taken,
        two_daemons_have_networks_of_their_own,
        forwarding_is_turned_on,
    }
}

suite! {
    devices:
        a_device_brings_nodes_mounts_variables_and_groups,
        a_device_may_be_used_as_far_as_it_says_and_others_not,
        a_device_in_an_insecure_container,
        a_device_stands_in_for_one_of_dockers;
    calls:
        keyrings_are_refused,
        calls_that_reach_the_machine_are_refused,
        processes_outside_cannot_be_reached,
        set_user_id_programs_work,
        a_seccomp_profile_of_ones_own_replaces_dockers;
    sees:
        environment_is_given_and_home_added,
        empty_home_counts_as_missing,
        host_name_and_hosts,
        resolv_conf_names_a_server,
        root_has_dockers_capabilities,
        another_user_has_none_in_effect,
        insecure_root_has_all_capabilities,
        user_by_name_has_supplementary_groups,
        user_by_number_and_group,
        a_number_brings_the_groups_of_its_name,
        unknown_user_is_an_error,
        seccomp_is_on_and_new_privileges_are_allowed,
        insecure_has_no_seccomp,
        process_is_pid_one_and_alone,
        working_directory_is_made_for_the_user,
        existing_working_directory_keeps_its_owner,
        working_directory_that_is_a_file_is_an_error,
        standard_input_is_empty,
        only_standard_descriptors_are_open,
        umask_is_022,
        signals_are_at_their_defaults,
        ulimits_are_set,
        devices_are_dockers,
        dev_links_and_file_systems,
        sys_and_cgroup_are_read_only,
        nothing_of_the_host_is_mounted,
        shm_has_the_size_asked_for,
        network_none_has_only_loopback,
        network_host_is_the_hosts,
        user_can_write_to_dev_stdout,
        program_is_found_in_path;
    ends:
        exit_code_is_given,
        signal_is_128_and_itself,
        streams_are_apart_and_complete,
        last_output_before_exit_is_not_lost,
        reader_that_goes_away_does_not_block,
        background_processes_die_with_the_first,
        missing_program_is_an_error,
        program_that_is_not_executable_is_an_error,
        cancel_ends_what_catches_sigterm_with_grace,
        cancel_kills_what_catches_and_stays,
        cancel_is_quick_when_sigterm_is_not_noticed,
        cancelled_before_start,
        many_at_once,
        the_same_id_twice_is_refused,
        memory_limit_kills_and_says_so,
        pids_limit_holds,
        processes_of_all_containers_are_bounded,
        limits_are_written;
    talks:
        standard_input_reaches_the_process_and_ends,
        a_process_may_leave_its_input_unread,
        a_terminal_is_one,
        a_terminal_is_resized,
        what_is_typed_reaches_the_terminals_process,
        signals_by_name_reach_the_process,
        the_start_is_told_where_there_is_one,
        a_joined_process_is_in_the_container,
        a_joined_process_has_the_containers_rights,
        a_joined_process_has_a_user_and_an_exit_code_of_its_own,
        a_joined_process_has_streams_and_a_terminal,
        a_joined_process_is_in_the_containers_cgroups,
        a_joined_process_ends_with_the_first,
        a_joined_process_is_cancelled_alone,
        what_cannot_join_is_told_why,
        a_killed_owner_leaves_no_joined_process;
    foreign:
        a_program_for_another_processor_is_an_error_that_says_so,
        a_registered_emulator_runs_it_also_where_the_image_has_none;
    mounts:
        bind_read_write_and_read_only,
        snapshot_with_selector,
        shared_overlays_are_one_to_containers_at_once,
        selector_links_stay_in_the_snapshot,
        tmpfs_is_limited,
        secret_has_owner_and_mode,
        ssh_socket_can_be_reached,
        file_on_missing_target,
        mount_inside_mount,
        last_mount_on_a_target_wins,
        read_only_root,
        many_lower_directories,
        bind_root;
    escapes:
        mount_is_refused,
        mknod_of_a_disk_cannot_be_opened,
        proc_sys_cannot_be_written,
        proc_is_masked,
        sysrq_cannot_be_triggered,
        unshare_and_setns_are_refused,
        working_directory_through_a_descriptor,
        mount_target_links_stay_inside,
        mount_source_link_swapped_meanwhile_stays_inside,
        mount_target_link_swapped_meanwhile_stays_inside,
        masks_do_not_follow_what_the_image_has_in_dev,
        masks_do_not_follow_a_dev_that_others_change,
        mounts_inside_proc_are_refused,
        cgroups_cannot_be_changed,
        kernel_objects_cannot_be_written,
        the_daemons_terminal_cannot_be_had,
        working_directory_link_stays_inside,
        passwd_link_stays_inside,
        passwd_fifo_does_not_hang,
        proc_as_a_link_is_refused,
        processes_outside_are_not_seen,
        kernel_log_is_refused;
    remains:
        nothing_after_success,
        nothing_after_failure,
        nothing_after_set_up_failure,
        nothing_after_cancel,
        nothing_after_the_owner_is_killed,
        nothing_after_the_helper_is_killed,
        nothing_stays_open_in_the_helper,
        nothing_after_the_future_is_dropped,
        stubs_are_removed_and_times_kept,
        stub_parents_are_removed_when_asked,
        no_mount_point_stays_when_none_may,
        stub_cleaner_does_not_follow_links,
        files_of_the_image_are_not_changed_by_those_over_them,
        nothing_after_kills_at_random_moments,
        written_files_are_in_the_layer;
}
