(** Theorem B: the anytime step, which knows no horizon but bounds every [L(W_t) - min L]. The constant is 2 and there is no
    logarithm. *)

From FrankWolfe Require Import setting assumptions lemmas.

(** Telescoped: for all positive steps that do not increase. *)
Definition telescoped : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D Mo : R),
  Setting P run -> Diameter P D -> Oscillation P run Mo ->
  Static P -> FrankWolfeStep P run true ->
  (forall t, iteration run t -> 0 < eta run t) ->
  (forall t, iteration run t -> iteration run (S t) -> eta run (S t) <= eta run t) ->
  mean (gap run) (T run)
  <= Mo / (eta run (T run) * INR (T run)) + beta P * D ^ 2 / 2 * mean (eta run) (T run) + mean (eps run) (T run).

(** [2 sqrt(Mo beta) D/sqrt T] for [T > Mo/(beta D^2)], and [Mo/T + beta D^2/2] up to there. *)
Definition value (Mo C T : R) : R := if Rle_dec (C * T) Mo then Mo / T + C / 2 else 2 * sqrt (Mo * C / T).

(** Closed: with [eta_t = min(1, sqrt(Mo/(beta D^2 t)))]. *)
Definition statement : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D Mo : R),
  Setting P run -> Diameter P D -> Oscillation P run Mo ->
  Static P -> FrankWolfeStep P run true -> AnytimeStep run Mo (beta P * D ^ 2) ->
  mean (gap run) (T run) <= value Mo (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

(** * Proof *)

(** ** Sums *)

(** Abel's summation: of differences over positive numbers that do not increase. *)
Lemma abel h e top n : (1 <= n)%nat ->
  (forall t, (1 <= t <= n)%nat -> h t <= top) -> (forall t, (1 <= t <= n)%nat -> 0 < e t) ->
  (forall t, (1 <= t < n)%nat -> e (S t) <= e t) ->
  sum (fun t => (h t - h (S t)) / e t) n <= (top - h (S n)) / e n.
Proof.
  destruct n as [| n]; [lia | intros _]. induction n as [| n IH]; intros below positive falling.
  - pose proof (below 1%nat ltac:(lia)). pose proof (Rinv_0_lt_compat _ (positive 1%nat ltac:(lia))).
    simpl. unfold Rdiv. rewrite Rplus_0_l. apply Rmult_le_compat_r; lra.
  - assert (earlier : sum (fun t => (h t - h (S t)) / e t) (S n) <= (top - h (S (S n))) / e (S n)).
    { apply IH; intros t range; [apply below | apply positive | apply falling]; lia. }
    (* (top - h_{n+1})/e_n <= (top - h_{n+1})/e_{n+1} *)
    assert (later : (top - h (S (S n))) / e (S n) <= (top - h (S (S n))) / e (S (S n))).
    { apply Rmult_le_compat_l; [pose proof (below (S (S n)) ltac:(lia)); lra |].
      apply Rinv_le_contravar; [apply positive | apply falling]; lia. }
    replace ((top - h (S (S (S n)))) / e (S (S n)))
      with ((top - h (S (S n))) / e (S (S n)) + (h (S (S n)) - h (S (S (S n)))) / e (S (S n))) by (unfold Rdiv; ring).
    change (sum ?f (S (S n))) with (sum f (S n) + f (S (S n))). lra.
Qed.

Lemma sum_of_inverse_roots n : sum (fun t => 1 / sqrt (INR t)) n <= 2 * sqrt (INR n).
Proof.
  induction n as [| n IH]; [simpl; rewrite sqrt_0; lra |]. cbn [sum].
  pose proof (pos_INR n). assert (next : INR (S n) = INR n + 1) by apply S_INR.
  pose proof (sqrt_sqrt (INR n) ltac:(lra)). pose proof (sqrt_sqrt (INR (S n)) ltac:(lra)).
  pose proof (sqrt_lt_R0 (INR (S n)) ltac:(lra)).
  set (u := sqrt (INR n)) in *. set (v := sqrt (INR (S n))) in *.
  (* 1/v <= 2 (v - u), as v^2 - u^2 = 1 and (v - u)^2 >= 0 *)
  assert (1 / v <= 2 * (v - u)); [| lra].
  apply Rmult_le_reg_r with v; [assumption |]. replace (1 / v * v) with 1 by (field; lra).
  pose proof (pow2_ge_0 (v - u)). lra.
Qed.

(** ** The anytime step *)

Section Step.
  Variables (Mo C : R).

  Lemma anytime_is_whole t : C * t <= Mo -> anytime Mo C t = 1.
  Proof. intros early. unfold anytime. now destruct (Rle_dec (C * t) Mo). Qed.

  Hypotheses (Mo_positive : 0 < Mo) (bent : 0 < C).

  Lemma anytime_is_root t : Mo < C * t -> anytime Mo C t = sqrt (Mo / C) * (1 / sqrt t).
  Proof.
    intros late. assert (0 < t) by nra. unfold anytime. destruct (Rle_dec (C * t) Mo); [lra |].
    replace (Mo / (C * t)) with (Mo / C / t) by (field; lra).
    rewrite sqrt_div by (try apply Rlt_le, Rdiv_lt_0_compat; lra). unfold Rdiv. ring.
  Qed.

  Lemma root_positive t : 0 < t -> 0 < sqrt (Mo / C) * (1 / sqrt t).
  Proof.
    intros positive. pose proof (sqrt_lt_R0 t positive).
    apply Rmult_lt_0_compat; [apply sqrt_lt_R0 |]; apply Rdiv_lt_0_compat; lra.
  Qed.

  (** It is 1 only where the root is no less. *)
  Lemma anytime_below_root t : 0 < t -> anytime Mo C t <= sqrt (Mo / C) * (1 / sqrt t).
  Proof.
    intros positive. destruct (Rle_lt_dec (C * t) Mo) as [early | late]; [| rewrite anytime_is_root; lra].
    rewrite anytime_is_whole by assumption. pose proof (sqrt_lt_R0 t positive).
    apply Rmult_le_reg_r with (sqrt t); [assumption |].
    replace (sqrt (Mo / C) * (1 / sqrt t) * sqrt t) with (sqrt (Mo / C)) by (field; lra). rewrite Rmult_1_l.
    apply sqrt_le_1_alt. apply Rmult_le_reg_r with C; [assumption |]. replace (Mo / C * C) with Mo by (field; lra). lra.
  Qed.

  Lemma anytime_positive t : 0 < t -> 0 < anytime Mo C t.
  Proof.
    intros positive. destruct (Rle_lt_dec (C * t) Mo) as [early | late].
    - rewrite anytime_is_whole by assumption. lra.
    - rewrite anytime_is_root by assumption. now apply root_positive.
  Qed.

  Lemma anytime_falls s t : 0 < s <= t -> anytime Mo C t <= anytime Mo C s.
  Proof.
    intros order. assert (C * s <= C * t) by (apply Rmult_le_compat_l; lra). unfold anytime.
    assert (0 < C * s) by (apply Rmult_lt_0_compat; lra).
    destruct (Rle_dec (C * t) Mo), (Rle_dec (C * s) Mo); try lra.
    - rewrite <- sqrt_1. apply sqrt_le_1_alt. apply Rmult_le_reg_r with (C * t); [lra |].
      replace (Mo / (C * t) * (C * t)) with Mo by (field; nra). lra.
    - apply sqrt_le_1_alt. apply Rmult_le_compat_l; [lra |]. apply Rinv_le_contravar; lra.
  Qed.

  Lemma steps_add_up n : sum (fun t => anytime Mo C (INR t)) n <= 2 * (sqrt (Mo / C) * sqrt (INR n)).
  Proof.
    apply Rle_trans with (sqrt (Mo / C) * sum (fun t => 1 / sqrt (INR t)) n).
    - rewrite <- sum_scale. apply sum_le. intros t range. apply anytime_below_root, horizon_positive, range.
    - pose proof (Rmult_le_compat_l _ _ _ (sqrt_pos (Mo / C)) (sum_of_inverse_roots n)). lra.
  Qed.
End Step.

(** ** Of a run *)

Section Telescoping.
  Context {E : InnerProductSpace} (P : Problem E) (run : Run E) (D Mo : R).
  Hypotheses (setting : Setting P run) (diameter : Diameter P D) (oscillation : Oscillation P run Mo).
  Hypotheses (static : Static P) (step : FrankWolfeStep P run true).

  (** [g_t - eps_t <= (L_t - L_{t+1})/eta_t + beta D^2/2 eta_t] *)
  Lemma one_step_divided t : iteration run t -> 0 < eta run t ->
    gap run t - eps run t <= (L P 1 (W run t) - L P 1 (W run (S t))) / eta run t + beta P * D ^ 2 / 2 * eta run t.
  Proof.
    intros range moves. pose proof (one_step P run setting t step range) as one. unfold fall in one. rewrite !(static t) in one.
    pose proof (bend_below_diameter P run setting D t step diameter range).
    apply Rmult_le_reg_l with (eta run t); [assumption |].
    replace (eta run t * ((L P 1 (W run t) - L P 1 (W run (S t))) / eta run t + beta P * D ^ 2 / 2 * eta run t))
      with (L P 1 (W run t) - L P 1 (W run (S t)) + eta run t ^ 2 * (beta P * D ^ 2 / 2)) by (field; lra).
    pose proof (pow2_ge_0 (eta run t)). nra.
  Qed.

  Hypothesis positive : forall t, iteration run t -> 0 < eta run t.
  Hypothesis falling : forall t, iteration run t -> iteration run (S t) -> eta run (S t) <= eta run t.

  (** No loss is above [L(W_{T+1}) + Mo]. *)
  Lemma falls_over_steps :
    sum (fun t => (L P 1 (W run t) - L P 1 (W run (S t))) / eta run t) (T run) <= Mo / eta run (T run).
  Proof.
    replace Mo with (L P 1 (W run (S (T run))) + Mo - L P 1 (W run (S (T run)))) by ring.
    apply (abel (fun t => L P 1 (W run t))); [apply (some_iteration _ _ setting) | | exact positive |].
    - intros t range. assert (last : K P (W run (S (T run)))) by (apply step_is_feasible; auto; lia).
      pose proof (oscillation t _ range last). lra.
    - intros t range. apply falling; unfold iteration; lia.
  Qed.
End Telescoping.

Theorem AnytimeTelescoped : telescoped.
Proof.
  intros E P run D Mo setting diameter oscillation static step positive falling.
  pose proof (some_iteration _ _ setting) as some. pose proof (horizon_positive _ some).
  pose proof (positive (T run) ltac:(unfold iteration; lia)).
  pose proof (falls_over_steps P run Mo setting oscillation step positive falling).
  pose proof (sum_le _ _ (T run)
    (fun t range => one_step_divided P run D setting diameter static step t range (positive t range))) as steps.
  rewrite sum_minus, sum_plus, sum_scale in steps.
  apply mean_le; [assumption |]. unfold mean.
  replace (INR (T run) * _)
    with (Mo / eta run (T run) + beta P * D ^ 2 / 2 * sum (eta run) (T run) + sum (eps run) (T run)) by (field; lra).
  lra.
Qed.

(** Where [Mo = 0] and [beta D^2 > 0] the step is none, and nothing can be divided. But then every [W_t] is a minimiser, and has
    no gap. *)
Lemma no_gap_at_a_minimum {E : InnerProductSpace} (P : Problem E) (run : Run E) t :
  Setting P run -> Oscillation P run 0 -> Static P -> FrankWolfeStep P run true -> iteration run t -> gap run t <= eps run t.
Proof.
  intros setting oscillation static step range.
  pose proof (ghat_is_nearly_the_gap P run setting t range). enough (ghat P run t <= 0) by lra.
  apply Rnot_lt_le. intros ascent. pose proof (bend_nonneg P run setting t) as bend.
  set (b := beta P / 2 * distance2 run t) in *.
  (* s ghat <= s^2 b for all s in [0, 1], which s = ghat/(ghat + b) denies if ghat > 0 *)
  set (s := ghat P run t / (ghat P run t + b)).
  assert (share : s * (ghat P run t + b) = ghat P run t) by (unfold s; field; lra).
  assert (s01 : 0 < s <= 1) by (split; nra).
  pose proof (below_parabola P run setting t s step range ltac:(lra)) as parabola. fold b in parabola.
  assert (here : K P (W run t)) by (apply step_is_feasible; unfold iteration in *; auto; lia).
  destruct (inexact_oracle _ _ setting t range) as (there & _).
  pose proof (oscillation t _ range (convex_set _ _ setting _ _ s here there ltac:(lra))). rewrite !(static t) in parabola.
  assert (0 < s * (ghat P run t - s * b)) by (apply Rmult_lt_0_compat; nra). lra.
Qed.

(** [Mo/eta_T] and [C/2 sum eta_t <= C sqrt(Mo/C) sqrt T] are both [sqrt(Mo C T)]. *)
Lemma both_halves Mo C n : 0 < Mo -> 0 < C -> 0 < n ->
  Mo / (sqrt (Mo / C) * (1 / sqrt n) * n) + C / 2 * (2 * (sqrt (Mo / C) * sqrt n) / n) = 2 * sqrt (Mo * C / n).
Proof.
  intros Mo_positive bent n_positive. assert (ratio : 0 < Mo / C) by now apply Rdiv_lt_0_compat.
  pose proof (sqrt_lt_R0 n n_positive). pose proof (sqrt_lt_R0 _ ratio).
  assert (n_is : n = sqrt n * sqrt n) by (symmetry; apply sqrt_sqrt; lra).
  assert (Mo_is : Mo = C * (sqrt (Mo / C) * sqrt (Mo / C))) by (rewrite sqrt_sqrt by lra; field; lra).
  set (a := sqrt (Mo / C)) in *. set (r := sqrt n) in *. clearbody a r.
  replace (Mo * C / n) with ((C * a / r) * (C * a / r)) by (rewrite Mo_is, n_is; field; lra).
  rewrite sqrt_square by (left; apply Rdiv_lt_0_compat; nra). rewrite Mo_is, n_is. field. lra.
Qed.

(** ** The three cases *)

Section Cases.
  Context {E : InnerProductSpace} (P : Problem E) (run : Run E) (D Mo : R).
  Hypotheses (setting : Setting P run) (diameter : Diameter P D) (oscillation : Oscillation P run Mo).
  Hypotheses (static : Static P) (step : FrankWolfeStep P run true) (anytime_step : AnytimeStep run Mo (beta P * D ^ 2)).
  Let some := some_iteration _ _ setting.
  Let n_positive := horizon_positive _ some.

  (** Every step is whole. *)
  Lemma early : beta P * D ^ 2 * INR (T run) <= Mo ->
    mean (gap run) (T run) <= Mo / INR (T run) + beta P * D ^ 2 / 2 + mean (eps run) (T run).
  Proof.
    intros short. pose proof (curvature_nonneg P run setting D) as bent.
    assert (whole : forall t, iteration run t -> eta run t = 1).
    { intros t range. rewrite (anytime_step t range). apply anytime_is_whole.
      apply Rle_trans with (beta P * D ^ 2 * INR (T run)); [| assumption].
      apply Rmult_le_compat_l; [assumption |]. apply le_INR, range. }
    assert (mean_one : mean (eta run) (T run) = 1).
    { unfold mean. rewrite (sum_ext _ _ _ whole), sum_constant. field; lra. }
    replace (Mo / INR (T run)) with (Mo / (eta run (T run) * INR (T run)))
      by (rewrite whole, Rmult_1_l by (split; lia); reflexivity).
    rewrite <- (Rmult_1_r (beta P * D ^ 2 / 2)), <- mean_one.
    apply AnytimeTelescoped; try assumption; intros t range; [| intros next]; rewrite !whole by assumption; lra.
  Qed.

  (** Every step but the first ones is [sqrt(Mo/(beta D^2 t))], and those are no longer than that. *)
  Lemma late : 0 < Mo -> Mo < beta P * D ^ 2 * INR (T run) ->
    mean (gap run) (T run) <= 2 * sqrt (Mo * (beta P * D ^ 2) / INR (T run)) + mean (eps run) (T run).
  Proof.
    intros Mo_positive long. set (C := beta P * D ^ 2) in *. assert (bent : 0 < C) by nra.
    assert (counted : forall t, iteration run t -> 0 < INR t) by (intros t range; apply horizon_positive, range).
    eapply Rle_trans; [apply (AnytimeTelescoped E P run D Mo); try assumption |]; fold C.
    - intros t range. rewrite (anytime_step t range). apply anytime_positive; auto.
    - intros t range next. rewrite (anytime_step t range), (anytime_step _ next).
      apply anytime_falls; auto. split; [auto | apply le_INR; lia].
    - apply Rplus_le_compat_r. rewrite (anytime_step (T run)), anytime_is_root by (assumption || (split; lia)).
      rewrite <- both_halves by assumption. apply Rplus_le_compat_l.
      (* sum eta_t <= 2 sqrt(Mo/C) sqrt T *)
      apply Rmult_le_compat_l; [lra |]. apply Rmult_le_compat_r; [left; now apply Rinv_0_lt_compat |].
      rewrite (sum_ext _ _ _ anytime_step). now apply steps_add_up.
  Qed.

  (** No step goes anywhere. *)
  Lemma still : Mo = 0 -> mean (gap run) (T run) <= mean (eps run) (T run).
  Proof.
    intros flat. rewrite flat in oscillation. apply Rmult_le_compat_r; [left; now apply Rinv_0_lt_compat |].
    apply sum_le. intros t range. now apply no_gap_at_a_minimum with P.
  Qed.
End Cases.

Theorem AnytimeBound : statement.
Proof.
  intros E P run D Mo setting diameter oscillation static step anytime_step.
  unfold value. destruct (Rle_dec (beta P * D ^ 2 * INR (T run)) Mo) as [short | long]; [now apply early |].
  destruct (Rle_lt_dec Mo 0) as [flat | positive]; [| apply late; auto; lra].
  assert (Mo_nonneg : 0 <= Mo).
  { pose proof (some_iteration _ _ setting). pose proof (oscillation 1%nat (W run 1) ltac:(split; lia) (proj1 step)). lra. }
  pose proof (still P run Mo setting oscillation static step ltac:(lra)).
  pose proof (sqrt_pos (Mo * (beta P * D ^ 2) / INR (T run))). lra.
Qed.
