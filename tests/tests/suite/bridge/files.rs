//! Reading files of results.

use lapstrake_api_proto::gateway::{FileRange, ReadDirRequest, ReadFileRequest, StatFileRequest};
use lapstrake_tests::Workbench;

use crate::bridge::support::{Asked, ask, run};

async fn read(asked: &mut Asked, id: &str, path: &str, range: Option<(i64, i64)>) -> Result<String, String> {
    let range = range.map(|(offset, length)| FileRange { offset, length });
    let request = ReadFileRequest {
        r#ref: id.to_owned(),
        file_path: path.to_owned(),
        range,
        ..ReadFileRequest::default()
    };
    let answer = asked.bridge.read_file(request).await.map_err(|status| status.message().to_owned())?;
    Ok(String::from_utf8(answer.into_inner().data).unwrap())
}

async fn list(asked: &mut Asked, id: &str, path: &str, pattern: &str) -> Result<Vec<String>, String> {
    let request = ReadDirRequest {
        r#ref: id.to_owned(),
        dir_path: path.to_owned(),
        include_pattern: pattern.to_owned(),
        ..ReadDirRequest::default()
    };
    let answer = asked.bridge.read_dir(request).await.map_err(|status| status.message().to_owned())?;
    Ok(answer.into_inner().entries.into_iter().map(|stat| stat.path).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_read_in_whole_and_in_part() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let id = asked
        .solve(run("mkdir -p /d/sub && echo 0123456789 > /d/a.txt && echo b > /d/sub/b.txt && ln -s a.txt /d/l && ln /d/a.txt /d/z && mkfifo /d/p && chmod 4755 /d/a.txt"))
        .await;
    assert_eq!(read(&mut asked, &id, "/d/a.txt", None).await.unwrap(), "0123456789\n");
    assert_eq!(read(&mut asked, &id, "d/l", Some((2, 3))).await.unwrap(), "234");
    assert_eq!(read(&mut asked, &id, "/d/a.txt", Some((8, 100))).await.unwrap(), "89\n");
    assert_eq!(read(&mut asked, &id, "/d/a.txt", Some((100, 1))).await.unwrap(), "");
    assert_eq!(list(&mut asked, &id, "/d", "").await.unwrap(), ["a.txt", "l", "p", "sub", "z"]);
    assert_eq!(list(&mut asked, &id, "/d", "*.txt").await.unwrap(), ["a.txt"]);
    assert_eq!(list(&mut asked, &id, "/d", "*/*.txt").await.unwrap(), ["sub"]);
    let stat = |path: &str| StatFileRequest { r#ref: id.clone(), path: path.to_owned(), mount_index: 0 };
    let found = asked.bridge.stat_file(stat("/d/a.txt")).await.unwrap().into_inner().stat.unwrap();
    assert_eq!((found.path.as_str(), found.size, found.mode), ("a.txt", 11, 0o755 | 1 << 23));
    let found = asked.bridge.stat_file(stat("/d/sub")).await.unwrap().into_inner().stat.unwrap();
    assert_eq!(found.mode, 0o755 | 1 << 31);
    for (path, why) in [
        ("/nothing", "open /nothing: no such file or directory"),
        ("/d", "/d is not a regular file"),
        ("/d/p", "/d/p is not a regular file"),
    ] {
        assert_eq!(read(&mut asked, &id, path, None).await.unwrap_err(), why);
    }
    let status = asked.bridge.stat_file(stat("/d/none")).await.unwrap_err();
    assert_eq!(status.message(), "lstat /d/none: no such file or directory");
    assert!(read(&mut asked, &id, "/d/a.txt", Some((-1, 1))).await.unwrap_err().contains("negative"));
    assert!(list(&mut asked, &id, "/d", "[").await.unwrap_err().contains("includepatterns"));
    assert!(read(&mut asked, "nobody", "/d/a.txt", None).await.unwrap_err().contains("no such ref: nobody"));
    asked.give_nothing().await;
    asked.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_stay_in_their_result() {
    let bench = Workbench::new();
    let outside = bench.root().parent().unwrap().join("outside");
    std::fs::write(&outside, "secret").unwrap();
    let mut asked = ask(&bench).await;
    let at = outside.display();
    let id =
        asked.solve(run(&format!("ln -s {at} /l && ln -s / /up && ln -s ../../../../../..{at} /r"))).await;
    for path in
        ["/l".to_owned(), "/r".to_owned(), format!("/up{at}"), format!("../../../..{at}"), format!("{at}")]
    {
        let why = read(&mut asked, &id, &path, None).await.unwrap_err();
        assert!(why.contains("no such file or directory"), "{path}: {why}");
    }
    // Up from the root is the root.
    assert!(list(&mut asked, &id, "/../../up/..", "").await.unwrap().contains(&"bin".to_owned()));
    // Files of more bytes than fit in an answer are read in parts.
    let big = asked.solve(run("truncate -s 100M /big && echo end >> /big")).await;
    assert!(read(&mut asked, &big, "/big", None).await.unwrap_err().contains("limit"));
    assert_eq!(read(&mut asked, &big, "/big", Some((100 << 20, 10))).await.unwrap(), "end\n");
    asked.give_nothing().await;
    asked.end().await.unwrap();
}
