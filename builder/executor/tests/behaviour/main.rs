//! What a container is, seen from inside and outside: one suite over the native executor, runc and crun.
//!
//! Needs root, `/bin/busybox` (static), and for the other two their runtimes.

mod harness;
mod sees;

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

suite! {
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
        unknown_user_is_an_error,
        seccomp_is_on_and_new_privileges_are_allowed,
        insecure_has_no_seccomp,
        process_is_pid_one_and_alone,
        working_directory_is_made_for_the_user,
        existing_working_directory_keeps_its_owner,
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
}
