//! A disk that a step fills: the build fails, and everything can be removed and built again.

use lapstrake_tests::{Context, SmallDisk, Workbench};

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fills_the_disk_fails_alone() {
    let disk = SmallDisk::new(48);
    let bench = Workbench::new_in(disk.path());
    let filling = || Context::new("FROM busybox\nRUN cat /dev/zero > /big\n");
    for _ in 0..3 {
        bench.build(filling(), "filled").await.unwrap_err();
        bench.collector.collect().unwrap();
    }
    bench.build(Context::new("FROM busybox\nRUN echo fits > /small\n"), "app").await.unwrap();
    assert_eq!(bench.read("app", "small"), "fits\n");
}
